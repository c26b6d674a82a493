#define _GNU_SOURCE
#include "answer.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define PIECE (64 * 1024)
#define HEAD_LIMIT (64 * 1024)
#define LIMIT (64u * 1024 * 1024)

void answer_clear(struct answer *answer)
{
    char *data = answer->data;
    size_t capacity = answer->capacity;
    memset(answer, 0, sizeof *answer);
    answer->data = data;
    answer->capacity = capacity;
}

char *answer_room(struct answer *answer, size_t *room)
{
    if (answer->capacity - answer->used < PIECE) {
        size_t capacity = answer->capacity ? answer->capacity * 2 : 2 * PIECE;
        char *data = capacity > 2 * LIMIT ? NULL : realloc(answer->data, capacity);
        if (!data)
            return NULL;
        answer->data = data;
        answer->capacity = capacity;
    }
    *room = answer->capacity - answer->used;
    return answer->data + answer->used;
}

/* The value of a header line if it has this name; both end at `end`. */
static const char *value_of(const char *line, const char *end, const char *name)
{
    size_t length = strlen(name);
    if ((size_t)(end - line) <= length || strncasecmp(line, name, length) || line[length] != ':')
        return NULL;
    line += length + 1;
    while (line < end && (*line == ' ' || *line == '\t'))
        line++;
    return line;
}

static int is_word(const char *value, const char *end, const char *word)
{
    size_t length = strlen(word);
    return (size_t)(end - value) >= length && !strncasecmp(value, word, length);
}

static int parse_length(struct answer *answer, const char *value, const char *end)
{
    size_t length = 0;
    if (value == end)
        return 0;
    for (; value < end; value++) {
        if (!isdigit((unsigned char)*value) || length > LIMIT)
            return 0;
        length = length * 10 + (size_t)(*value - '0');
    }
    answer->length = length;
    answer->has_length = 1;
    return 1;
}

static int parse_line(struct answer *answer, const char *line, const char *end)
{
    const char *value;
    if ((value = value_of(line, end, "content-length")))
        return parse_length(answer, value, end);
    if ((value = value_of(line, end, "transfer-encoding")))
        return answer->is_chunked = is_word(value, end, "chunked");
    if ((value = value_of(line, end, "connection")))
        answer->closes = is_word(value, end, "close");
    return 1;
}

static enum progress parse_head(struct answer *answer)
{
    char *end = memmem(answer->data, answer->used, "\r\n\r\n", 4);
    if (!end)
        return answer->used > HEAD_LIMIT ? BROKEN : INCOMPLETE;
    if (end - answer->data < 12 || memcmp(answer->data, "HTTP/1.", 7) || answer->data[8] != ' ')
        return BROKEN;
    answer->status = atoi(answer->data + 9);
    if (answer->status < 100 || answer->status > 599)
        return BROKEN;
    answer->closes = answer->data[7] == '0';
    for (char *line = answer->data; line < end;) {
        char *stop = memmem(line, (size_t)(end + 2 - line), "\r\n", 2);
        if (line != answer->data && !parse_line(answer, line, stop))
            return BROKEN;
        line = stop + 2;
    }
    answer->head = (size_t)(end - answer->data) + 4;
    answer->joined = answer->next = answer->head;
    return COMPLETE;
}

/* Joins the chunks that are there; what follows the last one is trailers up to an empty line. */
static enum progress join_chunks(struct answer *answer)
{
    for (;;) {
        char *line = answer->data + answer->next, *rest;
        char *end = memmem(line, answer->used - answer->next, "\r\n", 2);
        if (!end)
            return INCOMPLETE;
        if (!isxdigit((unsigned char)*line))
            return BROKEN;
        unsigned long size = strtoul(line, &rest, 16);
        if (size > LIMIT)
            return BROKEN;
        if (size == 0) {
            char *stop = memmem(end, answer->used - (size_t)(end - answer->data), "\r\n\r\n", 4);
            if (!stop)
                return INCOMPLETE;
            return stop + 4 == answer->data + answer->used ? COMPLETE : BROKEN;
        }
        size_t start = (size_t)(end - answer->data) + 2;
        if (answer->used - start < size + 2)
            return INCOMPLETE;
        if (memcmp(answer->data + start + size, "\r\n", 2))
            return BROKEN;
        memmove(answer->data + answer->joined, answer->data + start, size);
        answer->joined += size;
        answer->next = start + size + 2;
    }
}

/* An interim answer (100 Continue) goes; the final one follows it. */
static void drop_head(struct answer *answer)
{
    size_t left = answer->used - answer->head;
    memmove(answer->data, answer->data + answer->head, left);
    answer_clear(answer);
    answer->used = left;
}

static enum progress body_progress(struct answer *answer)
{
    if (answer->status == 204 || answer->status == 304)
        return answer->used == answer->head ? COMPLETE : BROKEN;
    if (answer->is_chunked)
        return join_chunks(answer);
    if (!answer->has_length)
        return INCOMPLETE; /* until the server closes */
    size_t body = answer->used - answer->head;
    return body < answer->length ? INCOMPLETE : body == answer->length ? COMPLETE : BROKEN;
}

enum progress answer_grown(struct answer *answer, size_t count)
{
    answer->used += count;
    while (!answer->head) {
        enum progress progress = parse_head(answer);
        if (progress != COMPLETE)
            return progress;
        if (answer->status < 200)
            drop_head(answer);
    }
    return answer->used > LIMIT ? BROKEN : body_progress(answer);
}

enum progress answer_ended(struct answer *answer)
{
    answer->closes = 1;
    return answer->head && !answer->has_length && !answer->is_chunked ? COMPLETE : BROKEN;
}

const char *answer_body(const struct answer *answer, size_t *length)
{
    *length = (answer->is_chunked ? answer->joined : answer->used) - answer->head;
    return answer->data + answer->head;
}
