#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define COOL_DOWN (10 * MILLISECOND) /* before a connection that failed is tried again */
#define LATE (1 * MILLISECOND)

static void disconnect(struct connection *connection)
{
    if (connection->fd >= 0)
        close(connection->fd);
    connection->fd = -1;
    connection->is_connecting = 0;
}

static int is_right(const struct template *template, const struct answer *answer)
{
    size_t length;
    const char *body = answer_body(answer, &length);
    if (template->equals && (length != template->equals_size || memcmp(body, template->equals, length)))
        return 0;
    return !template->contains || memmem(body, length, template->contains, template->contains_size);
}

static int count_answer(struct load *load, struct connection *connection, int64_t now)
{
    struct template *template = connection->template;
    struct counts *counts = &load->counts;
    int has_status = connection->answer.status == template->status;
    int is_ok = has_status && is_right(template, &connection->answer);
    counts->statuses[connection->answer.status]++;
    counts->wrong_body += (uint64_t)(has_status && !is_ok);
    counts->answers_in_time += (uint64_t)(now <= load->end);
    if (!is_ok)
        return 0;
    counts->ok++;
    template->ok++;
    counts->ok_in_time += (uint64_t)(now <= load->end);
    add_sample(&counts->latency, now - connection->due);
    add_sample(&counts->service, now - connection->begun);
    add_sample(&template->latency, now - connection->due);
    return 1;
}

static void finish(struct load *load, struct connection *connection, enum outcome outcome)
{
    int64_t now = now_ns();
    int is_ok = outcome == ANSWERED && count_answer(load, connection, now);
    struct second *second = second_at(&load->counts, now - load->start);
    second->ok += (uint64_t)is_ok;
    second->other += (uint64_t)!is_ok;
    load->counts.outcomes[outcome]++;
    if (outcome != ANSWERED || connection->answer.closes || connection->written < connection->template->request_size)
        disconnect(connection);
    if (outcome == NOT_CONNECTED)
        connection->rests_until = now + COOL_DOWN;
    connection->is_busy = 0;
    load->free_slots[load->free_count++] = (int)(connection - load->connections);
}

static void write_some(struct connection *connection)
{
    const struct template *template = connection->template;
    while (connection->written < template->request_size) {
        ssize_t count = send(connection->fd, template->request + connection->written,
                             template->request_size - connection->written, MSG_NOSIGNAL);
        if (count < 0)
            return; /* full, or closed: then reading tells, and an early answer is still there to be read */
        connection->written += (size_t)count;
    }
}

/* INCOMPLETE while there is more to come; a broken answer ends the request. */
static void read_some(struct load *load, struct connection *connection)
{
    for (;;) {
        size_t room;
        char *piece = answer_room(&connection->answer, &room);
        ssize_t count = piece ? recv(connection->fd, piece, room, 0) : -1;
        if (count < 0 && piece && (errno == EAGAIN || errno == EINTR))
            return;
        if (!connection->is_busy) {
            disconnect(connection); /* closed by the server between requests, or bytes that nobody asked for */
            return;
        }
        if (count <= 0) {
            enum progress ended = count == 0 ? answer_ended(&connection->answer) : BROKEN;
            finish(load, connection, ended == COMPLETE ? ANSWERED : piece ? DISCONNECTED : NO_HTTP);
            return;
        }
        enum progress progress = answer_grown(&connection->answer, (size_t)count);
        if (progress != INCOMPLETE) {
            finish(load, connection, progress == COMPLETE ? ANSWERED : NO_HTTP);
            return;
        }
    }
}

static int begin_connection(struct load *load, struct connection *connection)
{
    int yes = 1;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection->fd < 0)
        return 0;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    connection->is_connecting = 1;
    load->counts.connections++;
    if (connect(connection->fd, (struct sockaddr *)&load->address, sizeof load->address) && errno != EINPROGRESS)
        return 0;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = connection};
    return !epoll_ctl(load->epoll, EPOLL_CTL_ADD, connection->fd, &event);
}

void begin(struct load *load, int64_t due, int64_t now)
{
    struct connection *connection = &load->connections[load->free_slots[--load->free_count]];
    struct template *template = next_template(&load->options);
    connection->template = template;
    connection->written = 0;
    connection->due = due;
    connection->begun = now;
    connection->is_busy = 1;
    answer_clear(&connection->answer);
    template->sent++;
    load->counts.sent++;
    load->counts.late += (uint64_t)(now - due > LATE);
    if (connection->fd >= 0)
        write_some(connection);
    else if (!begin_connection(load, connection))
        finish(load, connection, NOT_CONNECTED);
}

static int is_connected(struct connection *connection)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    connection->is_connecting = error != 0;
    return !error;
}

void handle(struct load *load, struct connection *connection, uint32_t events)
{
    if (connection->fd < 0)
        return; /* closed while an earlier event of this round was handled */
    if (connection->is_connecting) {
        if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
            return;
        if (!is_connected(connection)) {
            finish(load, connection, NOT_CONNECTED);
            return;
        }
    }
    if (connection->is_busy && (events & EPOLLOUT))
        write_some(connection);
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP))
        read_some(load, connection);
    if ((events & EPOLLRDHUP) && !connection->is_busy)
        disconnect(connection); /* it closed right behind its answer, without having said so */
}

void look_for_timeouts(struct load *load, int64_t now)
{
    for (int index = 0; index < load->options.connections; index++) {
        struct connection *connection = &load->connections[index];
        if (connection->is_busy && now - connection->begun > load->options.timeout)
            finish(load, connection, connection->is_connecting ? NOT_CONNECTED : TIMED_OUT);
    }
}
