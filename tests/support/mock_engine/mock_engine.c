// An OpenAI-compatible engine of known behaviour that costs next to nothing: one thread, epoll, a timer heap.
//
// It is the yardstick of the load tester and of anything that stands in front of an engine: it serves a fixed
// or listed service time, keeps an exact record of the pace at which it really sent tokens, can be given a
// limited number of slots with a first-in-first-out queue, and fails in the ways a real engine fails.
//
//   mock_engine [--port N] [--slots N] [--first-us N] [--token-us N] [--tokens N] [--services FILE]
//
//   --port N         listen on 127.0.0.1:N; 0 (default) takes a free port. "listening PORT" is printed when ready
//   --slots N        requests served at a time, the others wait in turn; 0 (default): no limit
//   --first-us N     microseconds from getting a slot to the first token (prefill)
//   --token-us N     microseconds from one token to the next (decode)
//   --tokens N       tokens of an answer whose request names no max_tokens
//   --services FILE  microseconds to the first token, one number a line, used in turn instead of --first-us
//
// The model name of a request chooses a fault: "fault:status=429" (any status), "fault:cut=5" (the connection
// closes after 5 tokens), "fault:stall=5" (silence after 5 tokens), "fault:error=5" (an error event after 5
// tokens), "fault:reset" (the connection closes before an answer), "fault:garbage" (an answer that is not HTTP).
//
// GET /metrics answers in vLLM's names, GET /stats as JSON: what was served, the gaps between tokens as they were
// sent and the time from each request to its answer's end, in buckets of 10 us.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FD = 65536, MAX_REQUEST = 8 << 20, GAP_BUCKETS = 200000, GAP_US = 10 };
enum kind { CHAT, COMPLETION, EMBEDDING };
enum fault { NONE, STATUS, CUT, STALL, ERROR_EVENT, RESET, GARBAGE };
enum state { IDLE, QUEUED, SERVING, SILENT };

typedef struct { char *data; size_t len, cap, off; } buffer;

typedef struct conn {
  int fd;
  uint32_t generation;
  enum state state;
  enum kind kind;
  enum fault fault;
  int fault_value, stream, usage, continuous, closing;
  int tokens, sent, prompt_tokens;
  uint64_t arrived, started, first, next, last_send;
  buffer in, out;
  struct conn *queue_next;
} conn;

typedef struct { uint64_t at; int fd; uint32_t generation; } timer;
typedef struct { const char *name; double sum; uint64_t count, buckets[32]; } histogram;

static const double BOUNDS[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4,
                                0.5, 0.75, 1, 1.5, 2, 2.5, 5, 7.5, 10, 15, 20, 30, 40, 50, 60, 120, 240};
enum { N_BOUNDS = sizeof BOUNDS / sizeof *BOUNDS };

static int opt_port, opt_slots, opt_tokens = 64, opt_unlisted;
static uint64_t opt_first_us = 5000, opt_token_us = 10000;
static uint64_t *services;
static size_t n_services, next_service;

static conn *conns[MAX_FD];
static uint32_t generations;
static timer *heap;
static size_t heap_len, heap_cap;
static int epoll_fd, timer_fd;
static uint64_t armed;
static conn *queue_head, *queue_tail;
static int serving, waiting;
static uint64_t served, aborted, sent_tokens, prompt_tokens_total, gaps[GAP_BUCKETS], totals[GAP_BUCKETS];
static histogram h_queue = {.name = "vllm:request_queue_time_seconds"},
                 h_prefill = {.name = "vllm:request_prefill_time_seconds"},
                 h_decode = {.name = "vllm:request_decode_time_seconds"},
                 h_ttft = {.name = "vllm:time_to_first_token_seconds"},
                 h_e2e = {.name = "vllm:e2e_request_latency_seconds"};

static void die(const char *what) { perror(what); exit(1); }

static uint64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static void tally(uint64_t *buckets, uint64_t us) {
  uint64_t bucket = us / GAP_US;
  buckets[bucket < GAP_BUCKETS ? bucket : GAP_BUCKETS - 1]++;
}

static void observe(histogram *h, uint64_t us) {
  double seconds = (double)us / 1e6;
  int i = 0;
  while (i < N_BOUNDS && seconds > BOUNDS[i]) i++;
  h->buckets[i]++;
  h->sum += seconds;
  h->count++;
}

static void reserve(buffer *b, size_t more) {
  if (b->len + more <= b->cap) return;
  while (b->cap < b->len + more) b->cap = b->cap ? b->cap * 2 : 1024;
  if (!(b->data = realloc(b->data, b->cap))) die("realloc");
}

static void append(buffer *b, const char *data, size_t n) {
  reserve(b, n);
  memcpy(b->data + b->len, data, n);
  b->len += n;
}

__attribute__((format(printf, 2, 3))) static void appendf(buffer *b, const char *format, ...) {
  va_list args;
  va_start(args, format);
  reserve(b, 1024);
  int n = vsnprintf(b->data + b->len, b->cap - b->len, format, args);
  va_end(args);
  b->len += (size_t)n;
}

// ---- timers

static void timer_push(uint64_t at, conn *c) {
  if (heap_len == heap_cap && !(heap = realloc(heap, (heap_cap = heap_cap ? heap_cap * 2 : 1024) * sizeof *heap)))
    die("realloc");
  size_t i = heap_len++;
  for (size_t up; i && heap[up = (i - 1) / 2].at > at; i = up) heap[i] = heap[up];
  heap[i] = (timer){at, c->fd, c->generation};
}

static timer timer_pop(void) {
  timer top = heap[0], last = heap[--heap_len];
  size_t i = 0;
  for (size_t child; (child = 2 * i + 1) < heap_len; i = child) {
    if (child + 1 < heap_len && heap[child + 1].at < heap[child].at) child++;
    if (heap[child].at >= last.at) break;
    heap[i] = heap[child];
  }
  heap[i] = last;
  return top;
}

static void timer_arm(void) {
  uint64_t at = heap_len ? heap[0].at : 0;
  if (at == armed) return;
  armed = at;
  struct itimerspec t = {.it_value = {.tv_sec = (time_t)(at / 1000000u), .tv_nsec = (long)(at % 1000000u) * 1000}};
  if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &t, NULL)) die("timerfd_settime");
}

// ---- connections

static void start_next(void);

static void leave(conn *c) {
  if (c->state == SERVING || c->state == SILENT) serving--;
  if (c->state == QUEUED) {
    conn **at = &queue_head;
    while (*at != c) at = &(*at)->queue_next;
    *at = c->queue_next;
    if (queue_tail == c) {
      queue_tail = queue_head;
      while (queue_tail && queue_tail->queue_next) queue_tail = queue_tail->queue_next;
    }
    waiting--;
  }
  c->state = IDLE;
}

static void drop(conn *c) {
  if (c->state != IDLE) aborted++;
  leave(c);
  conns[c->fd] = NULL;
  close(c->fd);
  free(c->in.data);
  free(c->out.data);
  free(c);
  start_next();
}

// Sends what is buffered; what the socket does not take waits for EPOLLOUT, so a slow reader delays nobody else.
// Returns 0, or -1 when the connection is gone.
static int flush(conn *c) {
  while (c->out.off < c->out.len) {
    ssize_t n = send(c->fd, c->out.data + c->out.off, c->out.len - c->out.off, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) {
      struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.fd = c->fd};
      epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
      return 0;
    }
    if (n < 0) { drop(c); return -1; }
    c->out.off += (size_t)n;
  }
  c->out.len = c->out.off = 0;
  if (c->closing) { leave(c); drop(c); return -1; }
  return 0;
}

static void reply(buffer *out, const char *status, const char *type, const char *body, size_t n) {
  appendf(out, "HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n", status, type, n);
  append(out, body, n);
}

static void chunk(buffer *out, const char *data, size_t n) {
  appendf(out, "%zx\r\n", n);
  append(out, data, n);
  append(out, "\r\n", 2);
}

static void finish(conn *c) {
  uint64_t now = now_us();
  served++;
  prompt_tokens_total += (uint64_t)c->prompt_tokens;
  observe(&h_queue, c->started - c->arrived);
  observe(&h_prefill, c->first - c->started);
  observe(&h_decode, now - c->first);
  observe(&h_e2e, now - c->arrived);
  tally(totals, now - c->arrived);
  leave(c);
}

// ---- answers

#define ID "\"id\":\"chatcmpl-0f1e2d3c4b5a69788796a5b4c3d2e1f0\",\"created\":1760000000,\"model\":\"bench\""

static int usage_json(conn *c, char *to, int completion) {
  return sprintf(to, "\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":%d}", c->prompt_tokens,
                 c->prompt_tokens + completion, completion);
}

static void event(conn *c, const char *delta, const char *finish_reason, int with_usage, int completion) {
  char body[1024];
  int n = sprintf(body, "data: {" ID ",\"object\":\"%s\",\"choices\":[{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":%s}]",
                  c->kind == CHAT ? "chat.completion.chunk" : "text_completion", delta, finish_reason);
  if (with_usage) { body[n++] = ','; n += usage_json(c, body + n, completion); }
  n += sprintf(body + n, "}\n\n");
  chunk(&c->out, body, (size_t)n);
}

static void answer_whole(conn *c) {
  char body[2048];
  int n;
  if (c->kind == EMBEDDING)
    n = sprintf(body, "{" ID ",\"object\":\"list\",\"data\":[{\"object\":\"embedding\",\"index\":0,\"embedding\":[0.1,0.2,0.3]}],"
                "\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d}}", c->prompt_tokens, c->prompt_tokens);
  else {
    n = sprintf(body, "{" ID ",\"object\":\"%s\",\"choices\":[{\"index\":0,%s,\"finish_reason\":\"length\"}],",
                c->kind == CHAT ? "chat.completion" : "text_completion",
                c->kind == CHAT ? "\"message\":{\"role\":\"assistant\",\"content\":\"tok tok\"}" : "\"text\":\"tok tok\"");
    n += usage_json(c, body + n, c->tokens);
    body[n++] = '}';
    sent_tokens += (uint64_t)c->tokens;
  }
  reply(&c->out, "200 OK", "application/json", body, (size_t)n);
  finish(c);
}

static void begin_stream(conn *c) {
  appendf(&c->out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
  if (c->kind == CHAT) event(c, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}", "null", 0, 0);
}

static void end_stream(conn *c) {
  event(c, c->kind == CHAT ? "\"delta\":{\"content\":\"\"}" : "\"text\":\"\"", "\"length\"", c->continuous, c->tokens);
  if (c->usage) {
    char body[512];
    int n = sprintf(body, "data: {" ID ",\"object\":\"chat.completion.chunk\",\"choices\":[],");
    n += usage_json(c, body + n, c->tokens);
    n += sprintf(body + n, "}\n\n");
    chunk(&c->out, body, (size_t)n);
  }
  chunk(&c->out, "data: [DONE]\n\n", 14);
  append(&c->out, "0\r\n\r\n", 5);
  finish(c);
}

// Whether the fault of this request strikes now; the request then has its end.
static int struck(conn *c) {
  if (c->sent != c->fault_value) return 0;
  if (c->fault == STALL) { c->state = SILENT; return 1; }
  if (c->fault == CUT) { c->closing = 1; return 1; }
  if (c->fault != ERROR_EVENT) return 0;
  const char *e = "data: {\"error\":{\"message\":\"EngineCore died\",\"type\":\"InternalServerError\",\"code\":500}}\n\n";
  chunk(&c->out, e, strlen(e));
  append(&c->out, "0\r\n\r\n", 5);
  leave(c);
  return 1;
}

static void token(conn *c, uint64_t now) {
  char delta[128];
  sprintf(delta, c->kind == CHAT ? "\"delta\":{\"content\":\" tok%d\"}" : "\"text\":\" tok%d\"", c->sent);
  c->sent++;
  event(c, delta, "null", c->continuous, c->sent);
  if (c->sent > 1) {
    tally(gaps, now - c->last_send);
  }
  c->last_send = now;
  sent_tokens++;
}

static void step(conn *c) {
  uint64_t now = now_us();
  if (!c->first) { c->first = now; observe(&h_ttft, now - c->arrived); }
  if (!c->stream) { answer_whole(c); return; }
  if (!c->sent) begin_stream(c);
  if (struck(c)) return;
  token(c, now);
  if (c->sent == c->tokens) { end_stream(c); return; }
  c->next += opt_token_us;
  timer_push(c->next, c);
}

static void start(conn *c) {
  c->state = SERVING;
  serving++;
  c->started = now_us();
  uint64_t first = n_services ? services[next_service++ % n_services] : opt_first_us;
  if (!c->stream && !n_services) first += (uint64_t)(c->tokens - 1) * (c->kind == EMBEDDING ? 0 : opt_token_us);
  c->next = c->started + first;
  timer_push(c->next, c);
}

static void start_next(void) {
  while (queue_head && (!opt_slots || serving < opt_slots)) {
    conn *c = queue_head;
    queue_head = c->queue_next;
    if (!queue_head) queue_tail = NULL;
    waiting--;
    start(c);
  }
}

static void enqueue(conn *c) {
  c->state = QUEUED;
  c->queue_next = NULL;
  if (queue_tail) queue_tail->queue_next = c; else queue_head = c;
  queue_tail = c;
  waiting++;
  start_next();
}

// ---- what is scraped

static void render_histogram(buffer *b, const histogram *h) {
  uint64_t sum = 0;
  appendf(b, "# TYPE %s histogram\n", h->name);
  for (int i = 0; i <= N_BOUNDS; i++) {
    sum += h->buckets[i];
    char le[32];
    if (i < N_BOUNDS) snprintf(le, sizeof le, "%g", BOUNDS[i]); else strcpy(le, "+Inf");
    appendf(b, "%s_bucket{engine=\"0\",le=\"%s\",model_name=\"bench\"} %lu\n", h->name, le, (unsigned long)sum);
  }
  appendf(b, "%s_count{engine=\"0\",model_name=\"bench\"} %lu\n%s_sum{engine=\"0\",model_name=\"bench\"} %.6f\n", h->name,
          (unsigned long)h->count, h->name, h->sum);
}

static void render_metrics(buffer *b) {
  const char *labels = "{engine=\"0\",model_name=\"bench\"}";
  appendf(b, "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running%s %d\n", labels, serving);
  appendf(b, "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting%s %d\n", labels, waiting);
  appendf(b, "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc%s %g\n", labels,
          opt_slots ? (double)serving / opt_slots : 0.0);
  appendf(b, "# TYPE vllm:num_preemptions counter\nvllm:num_preemptions_total%s 0\n", labels);
  appendf(b, "# TYPE vllm:generation_tokens counter\nvllm:generation_tokens_total%s %lu\n", labels, (unsigned long)sent_tokens);
  appendf(b, "# TYPE vllm:prompt_tokens counter\nvllm:prompt_tokens_total%s %lu\n", labels, (unsigned long)prompt_tokens_total);
  const histogram *all[] = {&h_queue, &h_prefill, &h_decode, &h_ttft, &h_e2e};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) render_histogram(b, all[i]);
}

static void render_tally(buffer *b, const char *name, const uint64_t *buckets) {
  const char *comma = "";
  appendf(b, "\"%s\":[", name);
  for (unsigned i = 0; i < GAP_BUCKETS; i++)
    if (buckets[i]) { appendf(b, "%s[%u,%lu]", comma, i * GAP_US, (unsigned long)buckets[i]); comma = ","; }
  append(b, "]", 1);
}

static void render_stats(buffer *b) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  double cpu = (double)r.ru_utime.tv_sec + (double)r.ru_utime.tv_usec / 1e6 + (double)r.ru_stime.tv_sec +
               (double)r.ru_stime.tv_usec / 1e6;
  appendf(b, "{\"served\":%lu,\"aborted\":%lu,\"tokens\":%lu,\"running\":%d,\"waiting\":%d,\"cpu_seconds\":%.3f,",
          (unsigned long)served, (unsigned long)aborted, (unsigned long)sent_tokens, serving, waiting, cpu);
  render_tally(b, "gaps_us", gaps);
  append(b, ",", 1);
  render_tally(b, "totals_us", totals);
  append(b, "}", 1);
}

static void get(conn *c, const char *path) {
  buffer body = {0};
  const char *type = "application/json";
  if (!strcmp(path, "/metrics")) { render_metrics(&body); type = "text/plain; version=0.0.4"; }
  else if (!strcmp(path, "/stats")) render_stats(&body);
  else if (!strcmp(path, "/v1/models") && !opt_unlisted)
    appendf(&body, "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1760000000,\"owned_by\":\"vllm\","
            "\"root\":\"bench\",\"parent\":null,\"max_model_len\":131072}]}");
  else if (strcmp(path, "/health")) {
    const char *e = "{\"detail\":\"Not Found\"}";
    reply(&c->out, "404 Not Found", type, e, strlen(e));
    return;
  }
  reply(&c->out, "200 OK", type, body.data, body.len);
  free(body.data);
}

// ---- requests

static const char *after(const char *body, const char *key) {
  const char *at = strstr(body, key);
  if (!at) return NULL;
  at += strlen(key);
  while (*at == ' ' || *at == ':') at++;
  return at;
}

static void read_fault(conn *c, const char *body) {
  static const struct { const char *name; enum fault fault; } names[] = {
      {"status=", STATUS}, {"cut=", CUT}, {"stall=", STALL}, {"error=", ERROR_EVENT}, {"reset", RESET}, {"garbage", GARBAGE}};
  const char *at = strstr(body, "\"fault:");
  c->fault = NONE;
  if (!at) return;
  at += 7;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strncmp(at, names[i].name, strlen(names[i].name))) {
      c->fault = names[i].fault;
      c->fault_value = atoi(at + strlen(names[i].name));
    }
}

static int is_true(const char *body, const char *key) {
  const char *at = after(body, key);
  return at && !strncmp(at, "true", 4);
}

static void post(conn *c, const char *path, const char *body, size_t n) {
  c->kind = strstr(path, "embeddings") ? EMBEDDING : strstr(path, "chat") ? CHAT : COMPLETION;
  c->stream = c->kind != EMBEDDING && is_true(body, "\"stream\"");
  c->usage = is_true(body, "\"include_usage\"");
  c->continuous = is_true(body, "\"continuous_usage_stats\"");
  const char *limit = after(body, "\"max_tokens\"");
  if (!limit) limit = after(body, "\"max_completion_tokens\"");
  c->tokens = limit ? atoi(limit) : opt_tokens;
  if (c->tokens < 1) c->tokens = 1;
  c->prompt_tokens = (int)(n / 5) + 1;
  c->sent = 0;
  c->first = c->last_send = 0;
  c->arrived = now_us();
  read_fault(c, body);
  if (c->fault == STATUS) {
    char status[32];
    snprintf(status, sizeof status, "%d Mocked", c->fault_value);
    const char *e = "{\"error\":{\"message\":\"mocked\",\"code\":\"mocked\"}}";
    reply(&c->out, status, "application/json", e, strlen(e));
  } else if (c->fault == RESET) c->closing = 1;
  else if (c->fault == GARBAGE) { append(&c->out, "NOT HTTP AT ALL\r\n\r\n", 19); c->closing = 1; }
  else enqueue(c);
}

static size_t content_length(const char *head) {
  const char *at = strcasestr(head, "\ncontent-length:");
  return at ? strtoul(at + 16, NULL, 10) : 0;
}

// Handles one whole request at the start of the input; returns 0 when there is none yet.
static int one_request(conn *c) {
  char *end = c->in.len ? memmem(c->in.data, c->in.len, "\r\n\r\n", 4) : NULL;
  if (!end || c->state != IDLE) return 0;
  size_t head = (size_t)(end - c->in.data) + 4;
  *end = 0;
  size_t length = content_length(c->in.data);
  *end = '\r';
  if (length > MAX_REQUEST || c->in.len < head + length) return 0;
  char method[8], path[128];
  if (sscanf(c->in.data, "%7s %127s", method, path) != 2) { c->closing = 1; return 0; }
  char *query = strchr(path, '?');
  if (query) *query = 0;
  reserve(&c->in, 1);
  char saved = c->in.data[head + length];
  c->in.data[head + length] = 0;
  if (!strcmp(method, "GET")) get(c, path); else post(c, path, c->in.data + head, length);
  c->in.data[head + length] = saved;
  memmove(c->in.data, c->in.data + head + length, c->in.len - head - length);
  c->in.len -= head + length;
  return 1;
}

static void on_readable(conn *c) {
  for (;;) {
    reserve(&c->in, 16384);
    ssize_t n = recv(c->fd, c->in.data + c->in.len, c->in.cap - c->in.len - 1, 0);
    if (n < 0 && errno == EAGAIN) break;
    if (n <= 0) { drop(c); return; }
    c->in.len += (size_t)n;
    if (c->in.len > MAX_REQUEST) { drop(c); return; }
  }
  while (!c->closing && one_request(c)) {}
  flush(c);
}

static void on_timers(void) {
  uint64_t now = now_us();
  while (heap_len && heap[0].at <= now) {
    timer t = timer_pop();
    conn *c = conns[t.fd];
    if (!c || c->generation != t.generation || c->state != SERVING || c->next != t.at) continue;
    step(c);
    if (flush(c)) continue;
    if (c->state == IDLE) {
      start_next();
      while (!c->closing && one_request(c)) {}
      flush(c);
    }
  }
}

static void on_connect(int listener) {
  for (;;) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
    if (fd < 0) return;
    if (fd >= MAX_FD) { close(fd); continue; }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    conn *c = calloc(1, sizeof *c);
    if (!c) die("calloc");
    c->fd = fd;
    c->generation = ++generations;
    conns[fd] = c;
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
  }
}

// ---- start

static void read_services(const char *path) {
  FILE *f = fopen(path, "r");
  if (!f) die(path);
  unsigned long value;
  while (fscanf(f, "%lu", &value) == 1) {
    if (!(services = realloc(services, (n_services + 1) * sizeof *services))) die("realloc");
    services[n_services++] = value;
  }
  fclose(f);
}

static void read_options(int argc, char **argv) {
  static const struct option known[] = {{"port", 1, 0, 'p'}, {"slots", 1, 0, 's'}, {"first-us", 1, 0, 'f'},
                                        {"token-us", 1, 0, 't'}, {"tokens", 1, 0, 'n'}, {"services", 1, 0, 'S'}, {"unlisted", 0, 0, 'u'}, {0}};
  for (int o; (o = getopt_long(argc, argv, "", known, NULL)) != -1;) switch (o) {
    case 'p': opt_port = atoi(optarg); break;
    case 's': opt_slots = atoi(optarg); break;
    case 'u': opt_unlisted = 1; break;
    case 'f': opt_first_us = strtoull(optarg, NULL, 10); break;
    case 't': opt_token_us = strtoull(optarg, NULL, 10); break;
    case 'n': opt_tokens = atoi(optarg); break;
    case 'S': read_services(optarg); break;
    default: exit(2);
  }
}

static int listen_on(int port) {
  int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
  setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 65535)) die("bind");
  socklen_t n = sizeof a;
  getsockname(s, (struct sockaddr *)&a, &n);
  printf("listening %d\n", ntohs(a.sin_port));
  fflush(stdout);
  return s;
}

static void watch(int fd) {
  struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
}

int main(int argc, char **argv) {
  read_options(argc, argv);
  signal(SIGPIPE, SIG_IGN);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  int listener = listen_on(opt_port);
  watch(listener);
  watch(timer_fd);
  struct epoll_event events[512];
  for (;;) {
    timer_arm();
    int n = epoll_wait(epoll_fd, events, 512, -1);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == listener) { on_connect(listener); continue; }
      if (fd == timer_fd) { uint64_t fired; (void)!read(timer_fd, &fired, sizeof fired); armed = 0; continue; }
      if (conns[fd] && events[i].events & EPOLLOUT) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &e);
        if (flush(conns[fd])) continue;
      }
      if (conns[fd] && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(conns[fd]);
    }
    on_timers();
  }
}
