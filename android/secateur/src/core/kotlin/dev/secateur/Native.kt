package dev.secateur

/** Takes text from the native library on the thread that made the call. */
internal fun interface NativeCallback {
    /**
     * Takes a piece of an answer, or one event as JSON. Empty text means that nothing has happened for a while.
     * Returns false to cancel.
     */
    fun onText(text: String): Boolean
}

/**
 * The native methods, as `crates/ffi/src/java.rs` implements them. Every one throws [SecateurException].
 *
 * The library is found by name; the system property `secateur.library` may give a file instead, for tests on a desktop.
 */
internal object Native {
    init {
        val file = System.getProperty("secateur.library")
        if (file != null) System.load(file) else System.loadLibrary("secateur_ffi")
    }

    @JvmStatic external fun create(config: String?): Long
    @JvmStatic external fun start(handle: Long): String
    @JvmStatic external fun waitReady(handle: Long, timeoutMs: Long): Boolean
    @JvmStatic external fun status(handle: Long): String
    @JvmStatic external fun plan(handle: Long, query: String?): String
    @JvmStatic external fun prune(handle: Long, query: String?, callback: NativeCallback?): String
    @JvmStatic external fun generate(handle: Long, request: String?, callback: NativeCallback?): String
    @JvmStatic external fun cancel(handle: Long)
    @JvmStatic external fun memoryPressure(handle: Long, level: Int)
    @JvmStatic external fun thermal(handle: Long, state: Int)
    @JvmStatic external fun stop(handle: Long)
    @JvmStatic external fun free(handle: Long)
}
