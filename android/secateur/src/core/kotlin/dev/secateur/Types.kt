package dev.secateur

/** What a service is given at its making. Only [stateDir] must be said. */
data class SecateurConfig(
    /** Folder of the store: private to the app, for example `filesDir`. Absolute. */
    val stateDir: String,
    /** A model file; the newest entry of the store when absent. */
    val model: String? = null,
    /** `auto`, a size (`900MiB`) or a percentage (`40%`): the bound on the whole process. */
    val memoryBudget: String = "auto",
    val threads: Int? = null,
    val contextLength: Int? = null,
    /** Answer on localhost too, for whoever has the token. */
    val http: Boolean = true,
    /** 0 lets the system choose a free port. */
    val port: Int = 0,
    /** A pruned form of the model that guesses ahead: answers stay the same. */
    val draft: String? = null,
) {
    internal fun toJson(): String = Json.write(
        mapOf(
            "state_dir" to stateDir,
            "model" to model,
            "memory_budget" to memoryBudget,
            "n_threads" to threads,
            "context_len" to contextLength,
            "http" to if (http) "localhost" else "off",
            "port" to port,
            "draft" to draft,
        ),
    )
}

/** Where the service answers, and the token of this start that it wants to see. Port 0: no HTTP. */
data class Endpoint(val port: Int, val token: String) {
    val baseUrl: String get() = "http://127.0.0.1:$port"

    /** The token stays out of logs. */
    override fun toString(): String = "Endpoint(port=$port)"
}

data class Message(val role: String, val content: String)

/** How tokens are chosen. Without settings the likeliest is taken each time. */
data class Sampling(
    val maxTokens: Int? = null,
    val temperature: Double? = null,
    val topK: Int? = null,
    val topP: Double? = null,
    val seed: Long? = null,
    val stop: List<String> = emptyList(),
) {
    internal fun toMap(): Map<String, Any?> = mapOf(
        "max_tokens" to maxTokens,
        "temperature" to temperature,
        "top_k" to topK,
        "top_p" to topP,
        "seed" to seed,
        "stop" to stop,
    )
}

/** What to prune and how. Without a [ratio] the memory budget decides how much is cut. */
data class PruneRequest(
    val ratio: Double? = null,
    val memoryBudget: String? = null,
    val calibrationTokens: Int? = null,
    val calibrationText: String? = null,
    val seed: Long? = null,
    /** Serve the result when it is done. */
    val activate: Boolean = true,
) {
    internal fun toJson(): String = Json.write(
        mapOf(
            "ratio" to ratio,
            "memory_budget" to memoryBudget,
            "calibration_tokens" to calibrationTokens,
            "calibration_text" to calibrationText,
            "seed" to seed,
            "activate" to activate,
        ),
    )
}

/** What a running prune job reports. */
sealed interface PruneEvent {
    /** How far it is: [done] from 0 to 1. */
    data class Progress(
        val stage: String,
        val done: Double,
        val layer: Int?,
        val layers: Int,
        val etaSeconds: Double?,
        val residentBytes: Long,
    ) : PruneEvent

    /** The plan is made: [reason] in words. */
    data class Planned(val ratio: Double, val reason: String) : PruneEvent

    /** The end: the pruned [model]'s id in the store. */
    data class Finished(val model: String) : PruneEvent
}

/** How short of memory the device is. */
enum class MemoryPressure { NORMAL, MODERATE, CRITICAL }

/** How hot the device is. */
enum class ThermalState { NOMINAL, FAIR, SERIOUS, CRITICAL }

/** The service at a glance; [raw] has everything. */
data class Status(val running: Boolean, val state: String, val model: String?, val raw: Map<String, Any?>)
