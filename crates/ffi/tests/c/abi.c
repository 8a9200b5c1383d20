// Drives the C ABI from C: the way of an app, then misuse. Usage: abi MODEL STATE_DIR [quick]
#include "secateur.h"
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <unistd.h>

static int failures = 0;
static const char *last(void) {
  const char *error = secateur_last_error();
  return error ? error : "(no error)";
}
#define EXPECT(want, call)                                                                        \
  do {                                                                                            \
    SecateurCode got_ = (call);                                                                   \
    if (got_ != (want)) {                                                                         \
      fprintf(stderr, "%s:%d: %s gave %d, not %d: %s\n", __FILE__, __LINE__, #call, got_, want, last()); \
      failures++;                                                                                 \
    }                                                                                             \
  } while (0)
#define CHECK(condition)                                                                          \
  do {                                                                                            \
    if (!(condition)) {                                                                           \
      fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #condition, last());        \
      failures++;                                                                                 \
    }                                                                                             \
  } while (0)
#define OK SECATEUR_CODE_OK

static const char *REQUEST =
    "{\"messages\":[{\"role\":\"user\",\"content\":\"Once upon a time\"}],\"max_tokens\":12}";
static const char *LONG = "{\"prompt\":\"Once upon a time\",\"max_tokens\":200,\"temperature\":1.5,\"seed\":3}";

struct seen {
  uint64_t handle;
  size_t calls, bytes;
  int stop_after;
  int reentrant; // the code that waiting calls gave inside the callback
  int light;     // the code that light calls gave inside the callback
  uint64_t cancel; // handle to cancel inside the callback
};

static int32_t on_text(void *context, const char *bytes, size_t len) {
  struct seen *seen = context;
  seen->calls++;
  seen->bytes += len;
  CHECK(bytes != NULL);
  if (seen->handle) {
    seen->reentrant = secateur_stop(seen->handle);
    EXPECT(SECATEUR_CODE_REENTRANT, secateur_free(seen->handle));
    EXPECT(SECATEUR_CODE_REENTRANT, secateur_start(seen->handle, NULL));
    EXPECT(SECATEUR_CODE_REENTRANT, secateur_wait_ready(seen->handle, 1));
    EXPECT(SECATEUR_CODE_REENTRANT, secateur_plan(seen->handle, NULL, NULL));
    EXPECT(SECATEUR_CODE_REENTRANT, secateur_prune(seen->handle, NULL, NULL, NULL, NULL));
    EXPECT(SECATEUR_CODE_REENTRANT, secateur_generate(seen->handle, REQUEST, NULL, NULL, NULL));
    seen->light = secateur_status(seen->handle, NULL);
  }
  if (seen->cancel) EXPECT(OK, secateur_cancel(seen->cancel));
  return seen->stop_after && (int)seen->calls >= seen->stop_after;
}

// One HTTP exchange; returns the status code.
static int http(uint16_t port, const char *path, const char *token) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  char text[1024];
  int status = -1;
  if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0) {
    snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s%s%s\r\n", path,
             token ? "Authorization: Bearer " : "", token ? token : "", token ? "\r\n" : "");
    CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    ssize_t n = read(fd, text, sizeof text - 1);
    text[n > 0 ? n : 0] = 0;
    sscanf(text, "HTTP/1.1 %d", &status);
  }
  close(fd);
  return status;
}

static uint64_t create(const char *model, const char *state, const char *more) {
  char config[2048];
  uint64_t handle = 0;
  snprintf(config, sizeof config, "{\"state_dir\":\"%s\",\"model\":\"%s\",\"memory_budget\":\"512MiB\",\"n_threads\":1%s}",
           state, model, more);
  EXPECT(OK, secateur_create(config, &handle));
  CHECK(handle != 0);
  return handle;
}

// How many threads of this process are ours: those that compute, watch memory and serve.
static int threads_of_the_library(void) {
  int n = 0;
  DIR *tasks = opendir("/proc/self/task");
  CHECK(tasks != NULL);
  for (struct dirent *task; tasks && (task = readdir(tasks));) {
    char path[300], name[32] = "";
    snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
    FILE *file = fopen(path, "r");
    if (!file) continue;
    if (fgets(name, sizeof name, file))
      n += !strcmp(name, "compute\n") || !strcmp(name, "pressure\n") || !strncmp(name, "secateur", 8);
    fclose(file);
  }
  if (tasks) closedir(tasks);
  return n;
}

// None of them is left, or only what the kernel still lists for a moment after the end.
static int threads_have_ended(void) {
  for (int ms = 0; ms < 100 && threads_of_the_library() > 0; ms++) usleep(1000);
  return threads_of_the_library() == 0;
}

static void the_way_of_an_app(const char *model, const char *state) {
  uint64_t handle = create(model, state, "");
  SecateurEndpoint first = {0}, second = {0};
  EXPECT(SECATEUR_CODE_NOT_RUNNING, secateur_generate(handle, REQUEST, NULL, NULL, NULL));
  EXPECT(OK, secateur_start(handle, &first));
  EXPECT(SECATEUR_CODE_ALREADY_RUNNING, secateur_start(handle, &second));
  CHECK(first.port != 0 && strlen(first.token) == 64);
  EXPECT(OK, secateur_wait_ready(handle, 60000));
  CHECK(http(first.port, "/health", NULL) == 200);
  CHECK(http(first.port, "/v1/models", NULL) == 401);
  CHECK(http(first.port, "/v1/models", first.token) == 200);

  char *json = NULL;
  EXPECT(OK, secateur_status(handle, &json));
  CHECK(json && strstr(json, "\"running\":true") && strstr(json, "\"state\":\"ready\""));
  secateur_string_free(json);
  EXPECT(OK, secateur_plan(handle, "{\"ratio\":0.3}", &json));
  CHECK(json && strstr(json, "ratio"));
  secateur_string_free(json);

  struct seen seen = {.handle = handle};
  EXPECT(OK, secateur_generate(handle, REQUEST, on_text, &seen, &json));
  CHECK(json && strstr(json, "finish_reason"));
  CHECK(seen.calls > 0 && seen.bytes > 0);
  // Those that have answered; the one that watches may not have come to run.
  CHECK(threads_of_the_library() >= 2);
  CHECK(seen.reentrant == SECATEUR_CODE_REENTRANT && seen.light == OK);
  secateur_string_free(json);
  struct seen impatient = {.stop_after = 1};
  EXPECT(SECATEUR_CODE_CANCELLED, secateur_generate(handle, LONG, on_text, &impatient, &json));
  CHECK(impatient.calls == 1 && json == NULL);
  // A light call that ends the very call it is made from.
  struct seen quitter = {.cancel = handle};
  EXPECT(SECATEUR_CODE_CANCELLED, secateur_generate(handle, LONG, on_text, &quitter, NULL));

  struct seen events = {0};
  const char *prune = "{\"ratio\":0.3,\"calibration_tokens\":512,\"activate\":true}";
  EXPECT(OK, secateur_prune(handle, prune, on_text, &events, &json));
  CHECK(json && strstr(json, "\"state\":\"succeeded\""));
  CHECK(events.calls > 3);
  secateur_string_free(json);
  EXPECT(OK, secateur_wait_ready(handle, 60000));
  EXPECT(OK, secateur_generate(handle, REQUEST, NULL, NULL, NULL));

  // Hints: the model goes and comes back.
  EXPECT(OK, secateur_thermal(handle, SECATEUR_THERMAL_SERIOUS));
  EXPECT(OK, secateur_generate(handle, REQUEST, NULL, NULL, NULL));
  EXPECT(OK, secateur_thermal(handle, SECATEUR_THERMAL_NOMINAL));
  EXPECT(OK, secateur_memory_pressure(handle, SECATEUR_MEMORY_MODERATE));
  EXPECT(OK, secateur_generate(handle, REQUEST, NULL, NULL, NULL));
  EXPECT(OK, secateur_memory_pressure(handle, SECATEUR_MEMORY_CRITICAL));
  EXPECT(SECATEUR_CODE_NOT_READY, secateur_generate(handle, REQUEST, NULL, NULL, NULL));
  CHECK(strstr(last(), "memory"));
  EXPECT(OK, secateur_memory_pressure(handle, SECATEUR_MEMORY_NORMAL));
  EXPECT(OK, secateur_wait_ready(handle, 60000));
  EXPECT(OK, secateur_generate(handle, REQUEST, NULL, NULL, NULL));

  EXPECT(OK, secateur_stop(handle));
  EXPECT(OK, secateur_stop(handle));
  CHECK(http(first.port, "/health", NULL) == -1);
  EXPECT(SECATEUR_CODE_NOT_RUNNING, secateur_generate(handle, REQUEST, NULL, NULL, NULL));
  EXPECT(OK, secateur_status(handle, &json));
  CHECK(json && strstr(json, "\"running\":false"));
  secateur_string_free(json);
  EXPECT(OK, secateur_start(handle, &second));
  CHECK(strcmp(first.token, second.token) != 0);
  CHECK(http(second.port, "/v1/models", first.token) == 401);
  EXPECT(OK, secateur_free(handle));
  CHECK(http(second.port, "/health", NULL) == -1);
}

static void misuse(const char *model, const char *state) {
  uint64_t handle = 0;
  char *json = (char *)1;
  EXPECT(SECATEUR_CODE_INVALID_ARGUMENT, secateur_create(NULL, &handle));
  EXPECT(SECATEUR_CODE_INVALID_ARGUMENT, secateur_create("{}", NULL));
  EXPECT(SECATEUR_CODE_INVALID_ARGUMENT, secateur_create("{", &handle));
  EXPECT(SECATEUR_CODE_INVALID_ARGUMENT, secateur_create("\xff\xfe", &handle));
  EXPECT(SECATEUR_CODE_INVALID_ARGUMENT, secateur_create("{\"state_dir\":\"here\"}", &handle));
  CHECK(handle == 0 && strstr(last(), "absolute"));
  uint64_t wrong[] = {0, 1, UINT64_MAX, 0x5ec00001ULL << 8};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    uint64_t h = wrong[i];
    EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_start(h, NULL));
    EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_status(h, &json));
    CHECK(json == NULL);
    EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_plan(h, NULL, NULL));
    EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_prune(h, NULL, NULL, NULL, NULL));
    EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_generate(h, REQUEST, NULL, NULL, NULL));
    EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_wait_ready(h, 1));
    EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_cancel(h));
    EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_memory_pressure(h, 0));
    EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_thermal(h, 0));
    EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_stop(h));
    EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_free(h));
  }
  handle = create(model, state, ",\"http\":\"off\"");
  SecateurEndpoint endpoint = {.port = 7};
  EXPECT(OK, secateur_start(handle, &endpoint));
  CHECK(endpoint.port == 0 && endpoint.token[0] == 0);
  EXPECT(OK, secateur_wait_ready(handle, 60000));
  EXPECT(SECATEUR_CODE_INVALID_ARGUMENT, secateur_generate(handle, NULL, NULL, NULL, NULL));
  EXPECT(SECATEUR_CODE_INVALID_ARGUMENT, secateur_generate(handle, "{\"prompt\":\"a\",\"temperature\":9}", NULL, NULL, NULL));
  EXPECT(SECATEUR_CODE_INVALID_ARGUMENT, secateur_prune(handle, "{\"ratio\":2}", NULL, NULL, NULL));
  EXPECT(SECATEUR_CODE_INVALID_ARGUMENT, secateur_plan(handle, "{\"rato\":0.1}", NULL));
  EXPECT(SECATEUR_CODE_NOT_FOUND, secateur_plan(handle, "{\"model\":\"nobody\",\"ratio\":0.1}", NULL));
  EXPECT(SECATEUR_CODE_INVALID_ARGUMENT, secateur_memory_pressure(handle, 9));
  EXPECT(SECATEUR_CODE_INVALID_ARGUMENT, secateur_thermal(handle, -1));
  char *prompt = malloc(100032);
  memset(prompt, 'a', 100031);
  memcpy(prompt, "{\"prompt\":\"", 11);
  memcpy(prompt + 100020, "\"}", 3);
  EXPECT(SECATEUR_CODE_PROMPT_TOO_LONG, secateur_generate(handle, prompt, NULL, NULL, NULL));
  free(prompt);
  EXPECT(OK, secateur_free(handle));
  EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_status(handle, NULL));
  EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_free(handle));
  secateur_string_free(NULL);
  // A model that is none.
  handle = create("/dev/null", state, "");
  CHECK(secateur_start(handle, NULL) != OK);
  EXPECT(OK, secateur_free(handle));
}

static atomic_int answered, cancelled, refused;

static void *ask(void *argument) {
  uint64_t handle = *(uint64_t *)argument;
  CHECK(secateur_last_error() == NULL); // errors belong to threads
  for (int i = 0; i < 3; i++) {
    struct seen seen = {0};
    SecateurCode code = secateur_generate(handle, LONG, on_text, &seen, NULL);
    if (code == OK) atomic_fetch_add(&answered, 1);
    else if (code == SECATEUR_CODE_CANCELLED) atomic_fetch_add(&cancelled, 1);
    else atomic_fetch_add(&refused, 1);
  }
  return NULL;
}

// Created here, used there, cancelled from here, stopped under load.
static void threads(const char *model, const char *state) {
  uint64_t handle = create(model, state, ",\"queue_len\":32");
  pthread_t workers[4];
  EXPECT(OK, secateur_start(handle, NULL));
  EXPECT(OK, secateur_wait_ready(handle, 60000));
  for (int i = 0; i < 4; i++) pthread_create(&workers[i], NULL, ask, &handle);
  for (int i = 0; i < 4; i++) pthread_join(workers[i], NULL);
  CHECK(answered == 12 && cancelled == 0 && refused == 0);
  for (int i = 0; i < 4; i++) pthread_create(&workers[i], NULL, ask, &handle);
  // Until a cancellation meets a call at work.
  while (cancelled == 0 && answered < 24) {
    EXPECT(OK, secateur_cancel(handle));
    usleep(100);
  }
  for (int i = 0; i < 4; i++) pthread_join(workers[i], NULL);
  CHECK(cancelled > 0);
  answered = 0;
  for (int i = 0; i < 4; i++) pthread_create(&workers[i], NULL, ask, &handle);
  while (answered < 1) usleep(1000);
  EXPECT(OK, secateur_free(handle));
  for (int i = 0; i < 4; i++) pthread_join(workers[i], NULL);
  CHECK(refused > 0);
}

static void free_late(void *handle) {
  char *json = NULL;
  EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_status(0, NULL));
  EXPECT(OK, secateur_status(*(uint64_t *)handle, &json));
  secateur_string_free(json);
  EXPECT(OK, secateur_cancel(*(uint64_t *)handle));
  EXPECT(OK, secateur_free(*(uint64_t *)handle));
}

static pthread_key_t late;
static void *use_and_end(void *handle) {
  EXPECT(OK, secateur_start(*(uint64_t *)handle, NULL));
  EXPECT(OK, secateur_wait_ready(*(uint64_t *)handle, 60000));
  EXPECT(OK, secateur_generate(*(uint64_t *)handle, REQUEST, NULL, NULL, NULL));
  EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_status(0, NULL));
  pthread_setspecific(late, handle);
  return NULL;
}

// Freed while a thread ends, when its values are gone already: Swift drops the last reference of a thread there.
static void the_end_of_a_thread(const char *model, const char *state) {
  uint64_t handle = create(model, state, "");
  pthread_t thread;
  pthread_key_create(&late, free_late);
  pthread_create(&thread, NULL, use_and_end, &handle);
  pthread_join(thread, NULL);
  EXPECT(SECATEUR_CODE_INVALID_HANDLE, secateur_status(handle, NULL));
  CHECK(threads_have_ended());
}

// Anonymous memory: mapped files come and go with what else the machine does.
static long resident_kib(void) {
  char line[256];
  long kib = 0;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "RssAnon: %ld", &kib) == 1) break;
  if (file) fclose(file);
  return kib;
}

// Rounds of n cycles until one leaves next to nothing. What is kept for as long as the process lives (a heap with its
// holes, stacks for later threads) grows for hundreds of cycles and then no more; what each cycle loses never ends.
static void cycles(const char *model, const char *state, int n) {
  enum { ROUNDS = 15 };
  long grown = 0;
  for (int round = 0; round < ROUNDS; round++) {
    long before = resident_kib();
    for (int i = 0; i < n; i++) {
      uint64_t handle = create(model, state, "");
      EXPECT(OK, secateur_start(handle, NULL));
      EXPECT(OK, secateur_stop(handle));
      CHECK(threads_have_ended());
      EXPECT(OK, secateur_start(handle, NULL));
      EXPECT(OK, secateur_free(handle));
      CHECK(threads_have_ended());
    }
    grown = resident_kib() - before;
    if (n < 100 || grown < n) return;
  }
  fprintf(stderr, "%ld KiB are left of %d starts, and were of each %d before\n", grown, 2 * n, 2 * n);
  failures++;
}

int main(int argc, char **argv) {
  if (argc < 3) return 64;
  int quick = argc > 3;
  CHECK(secateur_abi_version() == 1);
  CHECK(secateur_last_error() == NULL);
  the_way_of_an_app(argv[1], argv[2]);
  misuse(argv[1], argv[2]);
  if (!quick) threads(argv[1], argv[2]);
  the_end_of_a_thread(argv[1], argv[2]);
  cycles(argv[1], argv[2], quick ? 1 : 100);
  if (failures) fprintf(stderr, "%d failures\n", failures);
  else puts("all as expected");
  return failures != 0;
}
