/* A closed-loop client of the chat completions API: one epoll thread, N keep-alive connections.
 *
 * usage: load_client PORT CONNECTIONS SECONDS stream|json MAX_TOKENS PROMPT_BYTES [SPREAD_MS]
 *
 * The connections send their first request at once, or one after the other within SPREAD_MS milliseconds.
 * The key is "k", the model "bench". Prints one JSON line. Latencies leave out the first exchange of every
 * connection, which pays for its set-up; counts do not. A response counts as good when its status is 200, its
 * body ends where its framing says, and, for a stream, its last event is [DONE] and no event is an error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER 65536

struct connection {
    int fd, status, chunked, in_body, done, failed, rounds;
    long length;
    uint64_t sent_at, event_at;
    size_t have;
    char buffer[BUFFER];
};

struct samples {
    uint32_t *values;
    size_t count, space;
};

static struct sockaddr_in address;
static int poller, streaming;
static char *request;
static size_t request_size;
static struct samples ttft, gap, whole;
static long good, bad, reconnects, events;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void add(struct samples *s, uint64_t value) {
    if (s->count == s->space) {
        s->space = s->space ? 2 * s->space : 65536;
        s->values = realloc(s->values, s->space * sizeof *s->values);
        if (!s->values) abort();
    }
    s->values[s->count++] = value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void print_ms(const char *name, struct samples *s) {
    double at[3] = {0.5, 0.95, 0.99};
    qsort(s->values, s->count, sizeof *s->values, ascending);
    printf(",\"%s\":[", name);
    for (int i = 0; i < 3; i++)
        printf("%s%.3f", i ? "," : "", s->count ? s->values[(size_t)(at[i] * (double)(s->count - 1))] / 1000.0 : -1.0);
    printf("]");
}

static void open_connection(struct connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        perror("connect");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
}

static void send_request(struct connection *c) {
    c->sent_at = now_us();
    c->event_at = 0;
    c->have = 0;
    c->in_body = c->done = c->failed = c->chunked = 0;
    c->length = -1;
    for (size_t at = 0; at < request_size;) {
        ssize_t n = send(c->fd, request + at, request_size - at, MSG_NOSIGNAL);
        if (n > 0) at += (size_t)n;
        else if (errno != EAGAIN) return; /* the next read says why */
    }
}

static void consume(struct connection *c, size_t n) {
    memmove(c->buffer, c->buffer + n, c->have - n);
    c->have -= n;
}

static void read_events(struct connection *c, char *data, size_t size, uint64_t now) {
    for (char *at = data, *end = data + size; (at = memmem(at, (size_t)(end - at), "data: ", 6)); at += 6) {
        if (end - at >= 12 && !memcmp(at, "data: [DONE]", 12)) {
            c->done = 1;
        } else if (end - at >= 14 && !memcmp(at, "data: {\"error\"", 14)) {
            c->failed = 1;
        } else {
            events++;
            if (c->rounds) add(c->event_at ? &gap : &ttft, now - (c->event_at ? c->event_at : c->sent_at));
            c->event_at = now;
        }
    }
}

/* Takes one chunk; 1 when the body has ended, 0 when more must come, -1 when one was taken. */
static int take_chunk(struct connection *c, uint64_t now) {
    char *eol = memmem(c->buffer, c->have, "\r\n", 2);
    if (!eol) return 0;
    size_t line = (size_t)(eol - c->buffer) + 2, size = strtoul(c->buffer, NULL, 16);
    if (c->have < line + size + 2) return 0;
    read_events(c, c->buffer + line, size, now);
    consume(c, line + size + 2);
    return size ? -1 : 1;
}

/* Whether the response has ended. */
static int advance(struct connection *c, uint64_t now) {
    if (!c->in_body) {
        char *end = memmem(c->buffer, c->have, "\r\n\r\n", 4);
        if (!end) return 0;
        *end = 0;
        char *length = strcasestr(c->buffer, "\ncontent-length:");
        c->status = atoi(c->buffer + 9);
        c->length = length ? atol(length + 16) : -1;
        c->chunked = !!strcasestr(c->buffer, "transfer-encoding: chunked");
        c->in_body = 1;
        consume(c, (size_t)(end - c->buffer) + 4);
    }
    if (c->chunked) {
        int taken;
        while ((taken = take_chunk(c, now)) < 0) {}
        return taken;
    }
    return c->length >= 0 && c->have >= (size_t)c->length;
}

static void receive(struct connection *c, uint64_t end) {
    ssize_t n = recv(c->fd, c->buffer + c->have, BUFFER - 1 - c->have, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        reconnects++;
        bad++;
        close(c->fd);
        open_connection(c);
        send_request(c);
        return;
    }
    c->have += (size_t)n;
    c->buffer[c->have] = 0;
    uint64_t now = now_us();
    if (!advance(c, now)) return;
    if (c->status == 200 && !c->failed && (c->done || !streaming)) good++;
    else bad++;
    if (c->rounds++) add(&whole, now - c->sent_at);
    if (now < end) send_request(c);
}

int main(int argc, char **argv) {
    if (argc != 7 && argc != 8) {
        fprintf(stderr,
                "usage: load_client PORT CONNECTIONS SECONDS stream|json MAX_TOKENS PROMPT_BYTES [SPREAD_MS]\n");
        return 2;
    }
    int count = atoi(argv[2]), tokens = atoi(argv[5]), prompt = atoi(argv[6]);
    double seconds = atof(argv[3]);
    uint64_t spread_us = argc == 8 ? strtoul(argv[7], NULL, 10) * 1000 : 0;
    streaming = !strcmp(argv[4], "stream");
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    char *text = malloc((size_t)prompt + 1), *body;
    for (int i = 0; i < prompt; i++) text[i] = "the quick brown fox "[i % 20];
    text[prompt] = 0;
    int size = asprintf(&body,
        "{\"model\":\"bench\",\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}],\"max_tokens\":%d%s}",
        text, tokens, streaming ? ",\"stream\":true" : "");
    request_size = (size_t)asprintf(&request,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer k\r\n"
        "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", size, body);
    poller = epoll_create1(0);
    struct connection *all = calloc((size_t)count, sizeof *all);
    uint64_t start = now_us(), end = start + (uint64_t)(seconds * 1e6);
    for (int i = 0; i < count; i++) open_connection(&all[i]);
    int begun = 0;
    struct epoll_event ready[512];
    for (uint64_t t; (t = now_us()) < end;) {
        while (begun < count && t - start >= spread_us * (uint64_t)begun / (uint64_t)count)
            send_request(&all[begun++]);
        int n = epoll_wait(poller, ready, 512, begun < count ? 1 : (int)((end - t) / 1000) + 1);
        for (int i = 0; i < n; i++) receive(ready[i].data.ptr, end);
    }
    double elapsed = (double)(now_us() - start) / 1e6;
    printf("{\"seconds\":%.2f,\"good\":%ld,\"bad\":%ld,\"reconnects\":%ld,\"events\":%ld", elapsed, good, bad,
           reconnects, events);
    print_ms("ttft_ms", &ttft);
    print_ms("gap_ms", &gap);
    print_ms("whole_ms", &whole);
    printf("}\n");
    return 0;
}
