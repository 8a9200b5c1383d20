//! The C side. Each function is a guard around one call of `Instance`.

use crate::error::{FfiError, SecateurCode};
use crate::instance::{Flow, Instance};
use crate::registry;
use secateur_service::{MemoryPressure, ThermalState};
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a token, its final zero included.
pub const SECATEUR_TOKEN_BYTES: usize = 65;

/// Where a started service answers.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SecateurEndpoint {
    /// Port on 127.0.0.1; 0 when the configuration turns HTTP off.
    pub port: u16,
    /// Bearer token of this start, ended by a zero; empty when HTTP is off.
    pub token: [c_char; SECATEUR_TOKEN_BYTES],
}

/// How short of memory the device is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecateurMemory {
    /// Enough: a model that was let go of comes back.
    Normal = 0,
    /// What requests left behind is dropped.
    Moderate = 1,
    /// Calls at work end and the model is let go of.
    Critical = 2,
}

/// How hot the device is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecateurThermal {
    /// Full speed.
    Nominal = 0,
    /// A quarter of the time is rest.
    Fair = 1,
    /// Half of the time is rest.
    Serious = 2,
    /// Three quarters of the time are rest.
    Critical = 3,
}

/// Takes text: `bytes` are UTF-8, `len` of them, not ended by a zero, and gone after the call. `len` is 0 when nothing has
/// come for a while. Returns 0 to go on, any other number to cancel. Runs on the thread that made the call.
pub type SecateurTextFn =
    Option<unsafe extern "C" fn(context: *mut c_void, bytes: *const c_char, len: usize) -> i32>;

thread_local! {
    static LAST_ERROR: RefCell<Option<CString>> = const { RefCell::new(None) };
}

fn set_last_error(message: &str) {
    let plain: String = message.chars().filter(|&c| c != '\0').collect();
    // A thread that is ending may have lost the place for it already.
    let _ = LAST_ERROR.try_with(|last| last.replace(CString::new(plain).ok()));
}

/// Runs one call: no panic leaves it, and its error stays for `secateur_last_error`.
fn guard(call: impl FnOnce() -> Result<(), FfiError>) -> SecateurCode {
    let result =
        catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| Err(panicked(payload.as_ref())));
    match result {
        Ok(()) => SecateurCode::Ok,
        Err(FfiError { code, message }) => {
            set_last_error(&message);
            code
        }
    }
}

/// The error of a panic.
pub(crate) fn panicked(payload: &(dyn std::any::Any + Send)) -> FfiError {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    FfiError::new(SecateurCode::Internal, format!("internal error: {text}"))
}

/// # Safety
/// `text` is null or points to a string that ends with a zero and does not change during the call.
unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, FfiError> {
    if text.is_null() {
        return Err(FfiError::argument(format!("`{what}` is null")));
    }
    // SAFETY: it is not null, and the caller vouches for the rest.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| FfiError::argument(format!("`{what}` is not UTF-8")))
}

/// As [`text`], null meaning an empty text.
/// # Safety
/// As [`text`].
unsafe fn optional_text<'a>(pointer: *const c_char, what: &str) -> Result<&'a str, FfiError> {
    if pointer.is_null() {
        return Ok("");
    }
    // SAFETY: the caller vouches for it.
    unsafe { text(pointer, what) }
}

/// Runs `call` and hands its text over through `out`, which may be null when the text is not wanted.
/// # Safety
/// `out` is null or may be written.
unsafe fn answer(
    out: *mut *mut c_char,
    call: impl FnOnce() -> Result<String, FfiError>,
) -> Result<(), FfiError> {
    if !out.is_null() {
        // SAFETY: the caller vouches for it.
        unsafe { out.write(std::ptr::null_mut()) };
    }
    let text = call()?;
    if !out.is_null() {
        let text = CString::new(text)
            .map_err(|_| FfiError::new(SecateurCode::Internal, "an answer has a zero in it"))?;
        // SAFETY: the caller vouches for it.
        unsafe { out.write(text.into_raw()) };
    }
    Ok(())
}

/// The callback of C as one of Rust.
fn text_callback(callback: SecateurTextFn, context: *mut c_void) -> impl FnMut(&str) -> Flow {
    move |text| {
        let Some(callback) = callback else { return Flow::Continue };
        // SAFETY: the caller of the ABI vouches for the function and its context; the text lives through the call.
        match unsafe { callback(context, text.as_ptr().cast(), text.len()) } {
            0 => Flow::Continue,
            _ => Flow::Stop,
        }
    }
}

/// Version of this interface; it grows when something is added and never changes otherwise.
#[unsafe(no_mangle)]
pub extern "C" fn secateur_abi_version() -> u32 {
    1
}

/// Makes an instance from a JSON configuration and writes its handle; nothing is started.
///
/// `{"state_dir": "/absolute/folder", "model": "/file.gguf", "draft": "/pruned.gguf", "memory_budget": "auto" |
/// "512MiB" | "40%", "n_threads": N, "queue_len": N, "context_len": N, "kv_dtype": "auto" | "f16" | "f32" | "q8_0",
/// "policy": "quality" | "compatible", "http": "localhost" | "off", "port": 0, "drain_ms": 1000}`; only `state_dir` must be there.
///
/// # Safety
/// `config_json` is null or a string ended by a zero; `handle` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn secateur_create(config_json: *const c_char, handle: *mut u64) -> SecateurCode {
    guard(|| {
        if handle.is_null() {
            return Err(FfiError::argument("`handle` is null"));
        }
        // SAFETY: checked above, and the caller vouches for both.
        let json = unsafe {
            handle.write(0);
            text(config_json, "config_json")?
        };
        let instance = Instance::create(json)?;
        // SAFETY: as above.
        unsafe { handle.write(registry::insert(instance)) };
        Ok(())
    })
}

/// Starts the service and writes where it answers, with a token made for this start. The model is made ready behind
/// it: see `secateur_wait_ready`.
///
/// # Safety
/// `endpoint` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn secateur_start(handle: u64, endpoint: *mut SecateurEndpoint) -> SecateurCode {
    guard(|| {
        let started = registry::get(handle)?.start()?;
        if !endpoint.is_null() {
            let mut token = [0; SECATEUR_TOKEN_BYTES];
            for (to, from) in token.iter_mut().zip(started.token.bytes().take(SECATEUR_TOKEN_BYTES - 1)) {
                *to = from as c_char;
            }
            // SAFETY: it is not null, and the caller vouches for it.
            unsafe { endpoint.write(SecateurEndpoint { port: started.port, token }) };
        }
        Ok(())
    })
}

/// Waits until the model answers. `SECATEUR_CODE_NOT_READY` when it does not within `timeout_ms` or never will.
#[unsafe(no_mangle)]
pub extern "C" fn secateur_wait_ready(handle: u64, timeout_ms: u64) -> SecateurCode {
    guard(|| match registry::get(handle)?.wait_ready(Duration::from_millis(timeout_ms))? {
        true => Ok(()),
        false => Err(FfiError::new(SecateurCode::NotReady, "the model is not ready yet")),
    })
}

/// Writes status and memory as JSON; also of a service that is not running.
///
/// # Safety
/// `json` is null or may be written; what is written there is given back by `secateur_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn secateur_status(handle: u64, json: *mut *mut c_char) -> SecateurCode {
    // SAFETY: the caller vouches for it.
    guard(|| unsafe { answer(json, || registry::get(handle)?.status()) })
}

/// Writes what would be cut, as JSON, and changes nothing.
///
/// `{"model": ID, "memory_budget": "...", "ratio": 0.3, "context_len": N, "policy": "...", "dtype": "..."}`; all optional,
/// null is `{}`.
///
/// # Safety
/// `query_json` is null or a string ended by a zero; `json` as for `secateur_status`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn secateur_plan(
    handle: u64,
    query_json: *const c_char,
    json: *mut *mut c_char,
) -> SecateurCode {
    guard(|| {
        // SAFETY: the caller vouches for both.
        unsafe {
            let query = optional_text(query_json, "query_json")?;
            answer(json, || registry::get(handle)?.plan(query))
        }
    })
}

/// Prunes a model into the store, waits for the end and writes the job as JSON. `on_event` gets each event as JSON:
/// `{"id": 1, "event": "progress" | "planned" | "state", "data": {...}}`.
///
/// The query is that of `secateur_plan`, and `"method"`, `"seed"`, `"calibration_tokens"`, `"calibration_text"`,
/// `"activate": true` to serve the result. A job that was cancelled or killed is taken up by the next one like it.
///
/// # Safety
/// As `secateur_plan`; `on_event` is null or may be called with `context` during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn secateur_prune(
    handle: u64,
    query_json: *const c_char,
    on_event: SecateurTextFn,
    context: *mut c_void,
    json: *mut *mut c_char,
) -> SecateurCode {
    guard(|| {
        // SAFETY: the caller vouches for both.
        unsafe {
            let query = optional_text(query_json, "query_json")?;
            answer(json, || registry::get(handle)?.prune(query, text_callback(on_event, context)))
        }
    })
}

/// Generates text without HTTP, waits for the end and writes it as JSON: text, finish_reason, token counts, speed.
/// `on_text` gets whole characters as they come.
///
/// `{"messages": [{"role": "user", "content": "..."}]}` or `{"prompt": "..."}`, and `max_tokens`, `temperature`, `top_k`,
/// `top_p`, `min_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`, `seed`, `stop`.
///
/// # Safety
/// As `secateur_prune`; `request_json` must not be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn secateur_generate(
    handle: u64,
    request_json: *const c_char,
    on_text: SecateurTextFn,
    context: *mut c_void,
    json: *mut *mut c_char,
) -> SecateurCode {
    guard(|| {
        // SAFETY: the caller vouches for both.
        unsafe {
            let request = text(request_json, "request_json")?;
            answer(json, || registry::get(handle)?.generate(request, text_callback(on_text, context)))
        }
    })
}

/// Ends every `secateur_prune` and `secateur_generate` at work on this handle: they return `SECATEUR_CODE_CANCELLED`.
#[unsafe(no_mangle)]
pub extern "C" fn secateur_cancel(handle: u64) -> SecateurCode {
    guard(|| registry::get(handle)?.cancel())
}

/// Passes on what the system says about memory: a number of `SecateurMemory`.
#[unsafe(no_mangle)]
pub extern "C" fn secateur_memory_pressure(handle: u64, level: i32) -> SecateurCode {
    guard(|| registry::get(handle)?.memory_pressure(memory_level(level)?))
}

/// Passes on what the system says about heat: a number of `SecateurThermal`.
#[unsafe(no_mangle)]
pub extern "C" fn secateur_thermal(handle: u64, state: i32) -> SecateurCode {
    guard(|| registry::get(handle)?.thermal(thermal_state(state)?))
}

/// Stops the service if it runs: calls at work end with an error, threads and port are gone on return. It may be
/// started again, with a new token.
#[unsafe(no_mangle)]
pub extern "C" fn secateur_stop(handle: u64) -> SecateurCode {
    guard(|| registry::get(handle)?.stop())
}

/// Stops the service if it runs, and forgets the handle.
#[unsafe(no_mangle)]
pub extern "C" fn secateur_free(handle: u64) -> SecateurCode {
    guard(|| {
        registry::check_may_wait()?;
        let instance: Arc<Instance> = registry::remove(handle)?;
        instance.stop()
    })
}

/// The last error of this thread in words; null when there was none. Valid until the next call on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn secateur_last_error() -> *const c_char {
    let pointer = |last: &RefCell<Option<CString>>| last.borrow().as_ref().map(|error| error.as_ptr());
    LAST_ERROR.try_with(pointer).ok().flatten().unwrap_or(std::ptr::null())
}

/// Gives back a text that another function wrote; null is fine.
///
/// # Safety
/// `string` is null or was written by a function of this library, and is given back once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn secateur_string_free(string: *mut c_char) {
    if !string.is_null() {
        // SAFETY: it came from `CString::into_raw`, as the caller vouches.
        drop(unsafe { CString::from_raw(string) });
    }
}

/// # Errors
/// `InvalidArgument` for other numbers.
pub(crate) fn memory_level(level: i32) -> Result<MemoryPressure, FfiError> {
    match level {
        0 => Ok(MemoryPressure::None),
        1 => Ok(MemoryPressure::Moderate),
        2 => Ok(MemoryPressure::Critical),
        _ => Err(FfiError::argument(format!("{level} is no level of memory pressure: 0, 1 or 2"))),
    }
}

/// # Errors
/// `InvalidArgument` for other numbers.
pub(crate) fn thermal_state(state: i32) -> Result<ThermalState, FfiError> {
    match state {
        0 => Ok(ThermalState::Nominal),
        1 => Ok(ThermalState::Fair),
        2 => Ok(ThermalState::Serious),
        3 => Ok(ThermalState::Critical),
        _ => Err(FfiError::argument(format!("{state} is no thermal state: 0 to 3"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_error() -> String {
        let error = secateur_last_error();
        assert!(!error.is_null());
        // SAFETY: it is not null, and no other call is made on this thread meanwhile.
        unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned()
    }

    #[test]
    fn no_panic_leaves_the_library() {
        assert_eq!(guard(|| panic!("in the {}", "middle")), SecateurCode::Internal);
        assert_eq!(last_error(), "internal error: in the middle");
        assert_eq!(guard(|| std::panic::panic_any(7)), SecateurCode::Internal);
        assert_eq!(last_error(), "internal error: no message");
        assert_eq!(guard(|| Err(FfiError::argument("with a \0 in it"))), SecateurCode::InvalidArgument);
        assert_eq!(last_error(), "with a  in it");
        assert_eq!(guard(|| Ok(())), SecateurCode::Ok);
    }

    #[test]
    fn a_panic_in_an_answer_leaves_no_text_behind() {
        let mut text = std::ptr::dangling_mut::<c_char>();
        // SAFETY: `text` may be written.
        let code = guard(|| unsafe { answer(&raw mut text, || panic!("half-way")) });
        assert_eq!(code, SecateurCode::Internal);
        assert!(text.is_null());
    }

    #[test]
    fn numbers_of_levels_are_those_of_the_header() {
        for (level, want) in [
            (SecateurMemory::Normal, MemoryPressure::None),
            (SecateurMemory::Critical, MemoryPressure::Critical),
        ] {
            assert_eq!(memory_level(level as i32).ok(), Some(want));
        }
        for (state, want) in [
            (SecateurThermal::Nominal, ThermalState::Nominal),
            (SecateurThermal::Serious, ThermalState::Serious),
        ] {
            assert_eq!(thermal_state(state as i32).ok(), Some(want));
        }
        assert!(memory_level(3).is_err() && memory_level(-1).is_err() && thermal_state(4).is_err());
    }
}
