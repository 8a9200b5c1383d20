//! The JNI side: the native methods of `dev.secateur.Native`. Errors and panics become `dev.secateur.SecateurException`.
//!
//! Only the `jni` crate touches the virtual machine; an exception thrown by a callback ends the call and goes on to the
//! caller.

use crate::c_abi::{memory_level, panicked, thermal_state};
use crate::error::FfiError;
use crate::instance::{Flow, Instance};
use crate::{SecateurCode, registry};
use jni::errors::ErrorPolicy;
use jni::objects::{JClass, JObject, JString, JThrowable};
use jni::sys::{jboolean, jint, jlong};
use jni::{Env, EnvUnowned, JValue, jni_sig, jni_str};
use std::time::Duration;

impl From<jni::errors::Error> for FfiError {
    fn from(error: jni::errors::Error) -> Self {
        Self::new(SecateurCode::Internal, format!("the virtual machine: {error}"))
    }
}

/// Throws every error and panic as `SecateurException`, unless an exception is on its way already.
struct Throw;

impl<T: Default> ErrorPolicy<T, FfiError> for Throw {
    type Captures<'unowned_env_local: 'native_method, 'native_method> = ();

    fn on_error<'unowned_env_local: 'native_method, 'native_method>(
        env: &mut Env<'unowned_env_local>,
        _captures: &mut Self::Captures<'unowned_env_local, 'native_method>,
        error: FfiError,
    ) -> jni::errors::Result<T> {
        if env.exception_check() {
            return Ok(T::default());
        }
        match throw(env, &error) {
            // Throwing is reported as an error, too.
            Ok(()) | Err(jni::errors::Error::JavaException) => Ok(T::default()),
            Err(other) => Err(other),
        }
    }

    fn on_panic<'unowned_env_local: 'native_method, 'native_method>(
        env: &mut Env<'unowned_env_local>,
        captures: &mut Self::Captures<'unowned_env_local, 'native_method>,
        payload: Box<dyn std::any::Any + Send + 'static>,
    ) -> jni::errors::Result<T> {
        Self::on_error(env, captures, panicked(payload.as_ref()))
    }
}

fn throw(env: &mut Env<'_>, error: &FfiError) -> jni::errors::Result<()> {
    let class = env.find_class(jni_str!("dev/secateur/SecateurException"))?;
    let message = env.new_string(&error.message)?;
    let arguments = [JValue::Int(error.code as jint), JValue::Object(&message)];
    let exception = env.new_object(class, jni_sig!("(ILjava/lang/String;)V"), &arguments)?;
    let exception = env.cast_local::<JThrowable>(exception)?;
    env.throw(exception)
}

/// # Errors
/// `InvalidHandle`.
fn instance(handle: jlong) -> Result<std::sync::Arc<Instance>, FfiError> {
    registry::get(handle.cast_unsigned())
}

fn string(env: &Env<'_>, text: &JString<'_>, what: &str) -> Result<String, FfiError> {
    if text.is_null() {
        return Err(FfiError::argument(format!("`{what}` is null")));
    }
    Ok(text.try_to_string(env)?)
}

/// Calls `boolean onText(String)` of a callback; a null callback always goes on.
fn call_back(env: &mut Env<'_>, callback: &JObject<'_>, text: &str) -> Flow {
    if callback.is_null() {
        return Flow::Continue;
    }
    // A frame of its own: a long answer would fill the table of local references.
    let flow = env.with_local_frame(4, |env| -> Result<bool, jni::errors::Error> {
        let text = env.new_string(text)?;
        let arguments = [JValue::Object(&text)];
        env.call_method(callback, jni_str!("onText"), jni_sig!("(Ljava/lang/String;)Z"), &arguments)?.z()
    });
    match flow {
        Ok(true) => Flow::Continue,
        Ok(false) | Err(_) => Flow::Stop,
    }
}

/// A native method of `dev.secateur.Native`: body in, exception out.
macro_rules! native {
    ($name:ident($env:ident $(, $argument:ident: $kind:ty)*) -> $result:ty $body:block) => {
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, missing_docs, reason = "the names are those of JNI; Native.kt describes them")]
        pub extern "system" fn $name<'local>(
            mut unowned: EnvUnowned<'local>,
            _class: JClass<'local>,
            $($argument: $kind),*
        ) -> $result {
            let outcome = unowned.with_env(|$env| -> Result<$result, FfiError> { $body });
            outcome.resolve::<Throw>()
        }
    };
}

native!(Java_dev_secateur_Native_create(env, config: JString<'local>) -> jlong {
    let config = string(env, &config, "config")?;
    Ok(registry::insert(Instance::create(&config)?).cast_signed())
});

native!(Java_dev_secateur_Native_start(env, handle: jlong) -> JString<'local> {
    let endpoint = instance(handle)?.start()?;
    let json = serde_json::json!({ "port": endpoint.port, "token": endpoint.token }).to_string();
    Ok(env.new_string(json)?)
});

native!(Java_dev_secateur_Native_waitReady(_env, handle: jlong, timeout_ms: jlong) -> jboolean {
    let timeout_ms = u64::try_from(timeout_ms).map_err(|_| FfiError::argument("`timeoutMs` is negative"))?;
    instance(handle)?.wait_ready(Duration::from_millis(timeout_ms))
});

native!(Java_dev_secateur_Native_status(env, handle: jlong) -> JString<'local> {
    let json = instance(handle)?.status()?;
    Ok(env.new_string(json)?)
});

native!(Java_dev_secateur_Native_plan(env, handle: jlong, query: JString<'local>) -> JString<'local> {
    let query = string(env, &query, "query")?;
    let json = instance(handle)?.plan(&query)?;
    Ok(env.new_string(json)?)
});

native!(Java_dev_secateur_Native_prune(
    env, handle: jlong, query: JString<'local>, callback: JObject<'local>
) -> JString<'local> {
    let query = string(env, &query, "query")?;
    let json = instance(handle)?.prune(&query, |event| call_back(env, &callback, event))?;
    Ok(env.new_string(json)?)
});

native!(Java_dev_secateur_Native_generate(
    env, handle: jlong, request: JString<'local>, callback: JObject<'local>
) -> JString<'local> {
    let request = string(env, &request, "request")?;
    let json = instance(handle)?.generate(&request, |text| call_back(env, &callback, text))?;
    Ok(env.new_string(json)?)
});

native!(Java_dev_secateur_Native_cancel(_env, handle: jlong) -> () {
    instance(handle)?.cancel()
});

native!(Java_dev_secateur_Native_memoryPressure(_env, handle: jlong, level: jint) -> () {
    instance(handle)?.memory_pressure(memory_level(level)?)
});

native!(Java_dev_secateur_Native_thermal(_env, handle: jlong, state: jint) -> () {
    instance(handle)?.thermal(thermal_state(state)?)
});

native!(Java_dev_secateur_Native_stop(_env, handle: jlong) -> () {
    instance(handle)?.stop()
});

native!(Java_dev_secateur_Native_free(_env, handle: jlong) -> () {
    registry::check_may_wait()?;
    registry::remove(handle.cast_unsigned())?.stop()
});
