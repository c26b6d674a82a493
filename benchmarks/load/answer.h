/* An HTTP/1.1 answer that arrives in pieces. */
#ifndef ANSWER_H
#define ANSWER_H

#include <stddef.h>

enum progress { INCOMPLETE, COMPLETE, BROKEN };

struct answer {
    char *data; /* as received; a chunked body is joined in place, behind the head */
    size_t used, capacity;
    size_t head;   /* bytes up to and with the empty line; 0 while it has not arrived */
    size_t joined; /* end of the joined body, where it is chunked */
    size_t next;   /* where the next chunk begins */
    size_t length;
    int status, is_chunked, has_length, closes;
};

/* Forgets what was received and keeps the memory. */
void answer_clear(struct answer *answer);

/* Room for at least one more piece; its size is in `room`. NULL: over the limit of 64 MiB. */
char *answer_room(struct answer *answer, size_t *room);

/* Takes note of `count` more bytes in the room. */
enum progress answer_grown(struct answer *answer, size_t count);

/* The server has closed the connection: complete only where the body goes on until then. */
enum progress answer_ended(struct answer *answer);

const char *answer_body(const struct answer *answer, size_t *length);

#endif
