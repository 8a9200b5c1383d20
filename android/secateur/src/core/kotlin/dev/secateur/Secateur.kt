package dev.secateur

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.channels.trySendBlocking
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.channelFlow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.isActive
import kotlinx.coroutines.withContext
import java.util.concurrent.atomic.AtomicLong

/**
 * One service in this process: a model that fits the device, and answers.
 *
 * Any thread may call anything. Functions that are not `suspend` return within milliseconds, except [start] and [stop]:
 * call these away from the main thread. Errors are [SecateurException].
 */
class Secateur(config: SecateurConfig) : AutoCloseable {
    private val handle = AtomicLong(Native.create(config.toJson()))

    /** Starts the service; the model is made ready behind it, see [awaitReady]. */
    fun start(): Endpoint {
        val json = Json.readObject(Native.start(handle.get()))
        return Endpoint((json["port"] as Long).toInt(), json["token"] as String)
    }

    /** Stops the service if it runs. It may be started again, with a new token. */
    fun stop() = Native.stop(handle.get())

    /** Stops for good. Every later call throws [SecateurException]. */
    override fun close() {
        val handle = handle.getAndSet(0)
        if (handle != 0L) Native.free(handle)
    }

    /** Waits until the model answers. @throws SecateurException with `NOT_READY` when it never will. */
    suspend fun awaitReady() = withContext(Dispatchers.IO) {
        // Slices, so that cancelling the coroutine is seen.
        while (!Native.waitReady(handle.get(), WAIT_SLICE_MS)) ensureActive()
    }

    fun status(): Status {
        val raw = Json.readObject(Native.status(handle.get()))
        val status = raw["status"] as? Map<*, *>
        val state = (status?.get("readiness") as? Map<*, *>)?.get("state") as? String
        val model = ((status?.get("model") as? Map<*, *>)?.get("model") as? Map<*, *>)?.get("name") as? String
        return Status(raw["running"] == true, state ?: "stopped", model, raw)
    }

    /** What would be cut for [ratio], or for the budget when absent; changes nothing. */
    suspend fun plan(ratio: Double? = null): Map<String, Any?> = withContext(Dispatchers.IO) {
        Json.readObject(Native.plan(handle.get(), Json.write(mapOf("ratio" to ratio))))
    }

    /** Continues a conversation, piece by piece. Leaving the flow ends the work. */
    fun chat(messages: List<Message>, sampling: Sampling = Sampling()): Flow<String> {
        val list = messages.map { mapOf("role" to it.role, "content" to it.content) }
        return generate(mapOf("messages" to list) + sampling.toMap())
    }

    /** Continues a text, piece by piece. Leaving the flow ends the work. */
    fun complete(prompt: String, sampling: Sampling = Sampling()): Flow<String> =
        generate(mapOf("prompt" to prompt) + sampling.toMap())

    private fun generate(request: Map<String, Any?>): Flow<String> {
        val json = Json.write(request)
        return calling({ it }) { callback -> Native.generate(handle.get(), json, callback) }
    }

    /** Prunes into the store. Leaving the flow cancels the job, which the next one like it takes up. */
    fun prune(request: PruneRequest = PruneRequest()): Flow<PruneEvent> {
        val json = request.toJson()
        return calling(::pruneEvent) { callback -> Native.prune(handle.get(), json, callback) }
    }

    /** Ends every [chat], [complete] and [prune] at work: they throw with `CANCELLED`. */
    fun cancel() = Native.cancel(handle.get())

    /** Passes on what the system says about memory; with `CRITICAL` the model is let go of until `NORMAL`. */
    fun memoryPressure(level: MemoryPressure) = Native.memoryPressure(handle.get(), level.ordinal)

    /** Passes on what the system says about heat; the service rests accordingly. */
    fun thermal(state: ThermalState) = Native.thermal(handle.get(), state.ordinal)

    /** For tests of the native methods themselves. */
    internal fun <T> handleForTests(call: (Long) -> T): T = call(handle.get())

    private companion object {
        const val WAIT_SLICE_MS = 100L
    }
}

/** Runs a native call on a thread that may block; what it says, where it means something, becomes the flow. */
private fun <T : Any> calling(meaning: (String) -> T?, call: (NativeCallback) -> String): Flow<T> = channelFlow {
    var hasLeft = false
    val callback = NativeCallback { text ->
        val item = if (text.isEmpty()) null else meaning(text)
        // A slow collector slows the callback, not the computation; a collector that has left ends both.
        if (item != null && !trySendBlocking(item).isSuccess) hasLeft = true
        isActive && !hasLeft
    }
    try {
        call(callback)
    } catch (error: SecateurException) {
        ensureActive()
        // The channel is closed a moment before this coroutine is cancelled: then nobody is there to be told.
        if (!hasLeft) throw error
    }
}.flowOn(Dispatchers.IO)

/** Reads one event of a job; null for those that say nothing new. */
private fun pruneEvent(text: String): PruneEvent? {
    val event = Json.readObject(text)
    val data = event["data"] as? Map<*, *> ?: return null
    return when (event["event"]) {
        "progress" -> PruneEvent.Progress(
            stage = data["stage"] as String,
            done = (data["done"] as Number).toDouble(),
            layer = (data["layer_idx"] as Number?)?.toInt(),
            layers = (data["n_layers"] as Number).toInt(),
            etaSeconds = (data["eta_s"] as Number?)?.toDouble(),
            residentBytes = (data["rss_bytes"] as Number).toLong(),
        )
        "planned" -> PruneEvent.Planned((data["ratio"] as Number).toDouble(), data["reason"] as String)
        "state" -> if (data["state"] == "succeeded") PruneEvent.Finished(data["model"] as String) else null
        else -> null
    }
}
