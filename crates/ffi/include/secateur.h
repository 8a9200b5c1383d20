// Secateur inside an app. Generated from crates/ffi/src/c_abi.rs by cbindgen; tests/ffi/run keeps the two equal.
//
// Any thread may call anything. Calls that wait (create excepted, everything but status, cancel and the two hints)
// are refused inside a callback. Errors are codes; secateur_last_error has the words.

#ifndef SECATEUR_H
#define SECATEUR_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// Bytes of a token, its final zero included.
#define SECATEUR_TOKEN_BYTES 65

// What a call says about its end; the same numbers in C, Kotlin and Swift.
typedef enum SecateurCode {
  // It is done.
  SECATEUR_CODE_OK = 0,
  // An argument is null where it must not be, is not UTF-8, is not the JSON that was expected, or is out of range.
  SECATEUR_CODE_INVALID_ARGUMENT = 1,
  // The handle was never given out, or has been freed.
  SECATEUR_CODE_INVALID_HANDLE = 2,
  // A call that waits was made from inside a callback.
  SECATEUR_CODE_REENTRANT = 3,
  // The service has not been started, or has been stopped.
  SECATEUR_CODE_NOT_RUNNING = 4,
  // The service is running already.
  SECATEUR_CODE_ALREADY_RUNNING = 5,
  // No model can answer yet: it is loading, being pruned, released under memory pressure, or there is none.
  SECATEUR_CODE_NOT_READY = 6,
  // The queue is full; try again.
  SECATEUR_CODE_BUSY = 7,
  // The caller asked to stop.
  SECATEUR_CODE_CANCELLED = 8,
  // The model cannot be made to fit the memory budget; the message names the smallest that would do.
  SECATEUR_CODE_REFUSED = 9,
  // There is no such model or job.
  SECATEUR_CODE_NOT_FOUND = 10,
  // The state does not allow it.
  SECATEUR_CODE_CONFLICT = 11,
  // A model file is damaged or of a kind that is not read.
  SECATEUR_CODE_BAD_MODEL = 12,
  // A file or a socket could not be used.
  SECATEUR_CODE_IO = 13,
  // The prompt does not fit the context.
  SECATEUR_CODE_PROMPT_TOO_LONG = 14,
  // A mistake of this library; the process may go on.
  SECATEUR_CODE_INTERNAL = 15,
} SecateurCode;

// How short of memory the device is.
typedef enum SecateurMemory {
  // Enough: a model that was let go of comes back.
  SECATEUR_MEMORY_NORMAL = 0,
  // What requests left behind is dropped.
  SECATEUR_MEMORY_MODERATE = 1,
  // Calls at work end and the model is let go of.
  SECATEUR_MEMORY_CRITICAL = 2,
} SecateurMemory;

// How hot the device is.
typedef enum SecateurThermal {
  // Full speed.
  SECATEUR_THERMAL_NOMINAL = 0,
  // A quarter of the time is rest.
  SECATEUR_THERMAL_FAIR = 1,
  // Half of the time is rest.
  SECATEUR_THERMAL_SERIOUS = 2,
  // Three quarters of the time are rest.
  SECATEUR_THERMAL_CRITICAL = 3,
} SecateurThermal;

// Where a started service answers.
typedef struct SecateurEndpoint {
  // Port on 127.0.0.1; 0 when the configuration turns HTTP off.
  uint16_t port;
  // Bearer token of this start, ended by a zero; empty when HTTP is off.
  char token[SECATEUR_TOKEN_BYTES];
} SecateurEndpoint;

// Takes text: `bytes` are UTF-8, `len` of them, not ended by a zero, and gone after the call. `len` is 0 when nothing has
// come for a while. Returns 0 to go on, any other number to cancel. Runs on the thread that made the call.
typedef int32_t (*SecateurTextFn)(void *context, const char *bytes, size_t len);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Version of this interface; it grows when something is added and never changes otherwise.
uint32_t secateur_abi_version(void);

// Makes an instance from a JSON configuration and writes its handle; nothing is started.
//
// `{"state_dir": "/absolute/folder", "model": "/file.gguf", "draft": "/pruned.gguf", "memory_budget": "auto" |
// "512MiB" | "40%", "n_threads": N, "queue_len": N, "context_len": N, "kv_dtype": "auto" | "f16" | "f32" | "q8_0",
// "policy": "quality" | "compatible", "http": "localhost" | "off", "port": 0, "drain_ms": 1000}`; only `state_dir` must be there.
//
// # Safety
// `config_json` is null or a string ended by a zero; `handle` is null or may be written.
enum SecateurCode secateur_create(const char *config_json,
                                  uint64_t *handle);

// Starts the service and writes where it answers, with a token made for this start. The model is made ready behind
// it: see `secateur_wait_ready`.
//
// # Safety
// `endpoint` is null or may be written.
enum SecateurCode secateur_start(uint64_t handle,
                                 struct SecateurEndpoint *endpoint);

// Waits until the model answers. `SECATEUR_CODE_NOT_READY` when it does not within `timeout_ms` or never will.
enum SecateurCode secateur_wait_ready(uint64_t handle,
                                      uint64_t timeout_ms);

// Writes status and memory as JSON; also of a service that is not running.
//
// # Safety
// `json` is null or may be written; what is written there is given back by `secateur_string_free`.
enum SecateurCode secateur_status(uint64_t handle, char **json);

// Writes what would be cut, as JSON, and changes nothing.
//
// `{"model": ID, "memory_budget": "...", "ratio": 0.3, "context_len": N, "policy": "...", "dtype": "..."}`; all optional,
// null is `{}`.
//
// # Safety
// `query_json` is null or a string ended by a zero; `json` as for `secateur_status`.
enum SecateurCode secateur_plan(uint64_t handle,
                                const char *query_json,
                                char **json);

// Prunes a model into the store, waits for the end and writes the job as JSON. `on_event` gets each event as JSON:
// `{"id": 1, "event": "progress" | "planned" | "state", "data": {...}}`.
//
// The query is that of `secateur_plan`, and `"method"`, `"seed"`, `"calibration_tokens"`, `"calibration_text"`,
// `"activate": true` to serve the result. A job that was cancelled or killed is taken up by the next one like it.
//
// # Safety
// As `secateur_plan`; `on_event` is null or may be called with `context` during the call.
enum SecateurCode secateur_prune(uint64_t handle,
                                 const char *query_json,
                                 SecateurTextFn on_event,
                                 void *context,
                                 char **json);

// Generates text without HTTP, waits for the end and writes it as JSON: text, finish_reason, token counts, speed.
// `on_text` gets whole characters as they come.
//
// `{"messages": [{"role": "user", "content": "..."}]}` or `{"prompt": "..."}`, and `max_tokens`, `temperature`, `top_k`,
// `top_p`, `min_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`, `seed`, `stop`.
//
// # Safety
// As `secateur_prune`; `request_json` must not be null.
enum SecateurCode secateur_generate(uint64_t handle,
                                    const char *request_json,
                                    SecateurTextFn on_text,
                                    void *context,
                                    char **json);

// Ends every `secateur_prune` and `secateur_generate` at work on this handle: they return `SECATEUR_CODE_CANCELLED`.
enum SecateurCode secateur_cancel(uint64_t handle);

// Passes on what the system says about memory: a number of `SecateurMemory`.
enum SecateurCode secateur_memory_pressure(uint64_t handle, int32_t level);

// Passes on what the system says about heat: a number of `SecateurThermal`.
enum SecateurCode secateur_thermal(uint64_t handle, int32_t state);

// Stops the service if it runs: calls at work end with an error, threads and port are gone on return. It may be
// started again, with a new token.
enum SecateurCode secateur_stop(uint64_t handle);

// Stops the service if it runs, and forgets the handle.
enum SecateurCode secateur_free(uint64_t handle);

// The last error of this thread in words; null when there was none. Valid until the next call on this thread.
const char *secateur_last_error(void);

// Gives back a text that another function wrote; null is fine.
//
// # Safety
// `string` is null or was written by a function of this library, and is given back once.
void secateur_string_free(char *string);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SECATEUR_H */
