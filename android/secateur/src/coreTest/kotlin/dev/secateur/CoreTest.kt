package dev.secateur

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import kotlinx.coroutines.withTimeoutOrNull
import java.io.File
import java.net.HttpURLConnection
import java.net.URI
import java.util.concurrent.atomic.AtomicInteger
import kotlin.system.exitProcess

// Runs on a desktop JVM against the library built for it: tests/android/run. Arguments: model, folder, cycles.

private var failures = 0
private var checks = 0

private fun check(what: String, isSo: Boolean, detail: () -> Any? = { "" }) {
    checks++
    if (!isSo) {
        failures++
        println("FAILED: $what ${detail()}")
    }
}

private inline fun expect(kind: ErrorKind, what: String, call: () -> Unit) {
    val error = runCatching(call).exceptionOrNull()
    check("$what gives $kind", (error as? SecateurException)?.kind == kind) { error }
}

private class Fixture(val model: String, val dir: File) {
    fun config(name: String = "state", http: Boolean = true) = SecateurConfig(
        stateDir = dir.resolve(name).path, model = model, memoryBudget = "1GiB", threads = 1, http = http,
    )
}

private val question = listOf(Message("user", "Once upon a time"))
private val short = Sampling(maxTokens = 12)
private val endless = Sampling(maxTokens = 200, temperature = 1.5, seed = 3)

/** One request; status code and body. */
private fun http(endpoint: Endpoint, path: String, token: String?, body: String? = null): Pair<Int, String> {
    val connection = URI(endpoint.baseUrl + path).toURL().openConnection() as HttpURLConnection
    if (token != null) connection.setRequestProperty("Authorization", "Bearer $token")
    if (body != null) {
        connection.doOutput = true
        connection.setRequestProperty("Content-Type", "application/json")
        connection.outputStream.use { it.write(body.toByteArray()) }
    }
    val status = connection.responseCode
    val stream = if (status < 400) connection.inputStream else connection.errorStream
    return status to (stream?.readBytes()?.decodeToString() ?: "")
}

private fun lifeOfAnApp(fixture: Fixture) = runBlocking {
    Secateur(fixture.config()).use { secateur ->
        check("stopped at first", !secateur.status().running)
        val endpoint = secateur.start()
        expect(ErrorKind.ALREADY_RUNNING, "a second start") { secateur.start() }
        withTimeout(60_000) { secateur.awaitReady() }
        check("ready", secateur.status().run { running && state == "ready" && model != null }) { secateur.status() }
        check("the token is not printed", endpoint.token.length == 64 && endpoint.token !in endpoint.toString())

        check("HTTP wants the token", http(endpoint, "/v1/models", null).first == 401)
        check("HTTP knows the token", http(endpoint, "/v1/models", endpoint.token).first == 200)
        val request = """{"messages":[{"role":"user","content":"Once upon a time"}],"max_tokens":12,"temperature":0}"""
        val (status, body) = http(endpoint, "/v1/chat/completions", endpoint.token, request)
        check("chat over localhost", status == 200) { body }
        val choice = (Json.readObject(body)["choices"] as List<*>).first() as Map<*, *>
        val overHttp = (choice["message"] as Map<*, *>)["content"]
        val pieces = secateur.chat(question, short).toList()
        check("chat without HTTP says the same", pieces.joinToString("") == overHttp) { "$pieces / $overHttp" }

        val plan = secateur.plan(ratio = 0.3)
        check("a plan", "ratio" in plan) { plan }
        val events = secateur.prune(PruneRequest(ratio = 0.3, calibrationTokens = 512)).toList()
        val progress = events.filterIsInstance<PruneEvent.Progress>()
        check("progress", progress.isNotEmpty() && progress.zipWithNext().all { (a, b) -> a.done <= b.done }) { events }
        check("planned", events.any { it is PruneEvent.Planned })
        val finished = events.last() as? PruneEvent.Finished
        check("one end", finished != null && events.count { it is PruneEvent.Finished } == 1) { events }
        withTimeout(60_000) { secateur.awaitReady() }
        check("the pruned model answers", secateur.complete("Once", short).toList().isNotEmpty())
        check("the pruned model is served", secateur.status().model?.contains("pruned") == true) { secateur.status() }

        secateur.stop()
        expect(ErrorKind.NOT_RUNNING, "an answer after the stop") { secateur.chat(question, short).toList() }
        val second = secateur.start()
        check("a fresh token", second.token != endpoint.token)
    }
}

private fun hints(fixture: Fixture) = runBlocking {
    Secateur(fixture.config(http = false)).use { secateur ->
        check("no port", secateur.start() == Endpoint(0, ""))
        withTimeout(60_000) { secateur.awaitReady() }
        ThermalState.entries.forEach(secateur::thermal)
        check("hot, but answering", secateur.chat(question, short).toList().isNotEmpty())
        secateur.thermal(ThermalState.NOMINAL)
        secateur.memoryPressure(MemoryPressure.MODERATE)
        check("short of memory, but answering", secateur.chat(question, short).toList().isNotEmpty())
        secateur.memoryPressure(MemoryPressure.CRITICAL)
        expect(ErrorKind.NOT_READY, "an answer without memory") { secateur.chat(question, short).toList() }
        secateur.memoryPressure(MemoryPressure.NORMAL)
        withTimeout(60_000) { secateur.awaitReady() }
        check("answering again", secateur.chat(question, short).toList().isNotEmpty())
    }
}

private fun errors(fixture: Fixture) = runBlocking {
    expect(ErrorKind.INVALID_ARGUMENT, "a relative folder") { Secateur(SecateurConfig(stateDir = "here")) }
    expect(ErrorKind.INVALID_ARGUMENT, "null") { Native.create(null) }
    for (handle in longArrayOf(0, 1, -1, Long.MAX_VALUE)) {
        expect(ErrorKind.INVALID_HANDLE, "handle $handle") { Native.start(handle) }
        expect(ErrorKind.INVALID_HANDLE, "handle $handle") { Native.generate(handle, "{}", null) }
        expect(ErrorKind.INVALID_HANDLE, "handle $handle") { Native.free(handle) }
    }
    val missing = Secateur(fixture.config().copy(model = fixture.dir.resolve("missing.gguf").path))
    check("a missing model", runCatching { missing.start() }.exceptionOrNull() is SecateurException)
    missing.close()
    missing.close()
    expect(ErrorKind.INVALID_HANDLE, "a call after close") { missing.start() }
    val small = Secateur(fixture.config().copy(memoryBudget = "1KiB"))
    expect(ErrorKind.REFUSED, "a budget of a kilobyte") { small.start() }
    small.close()

    Secateur(fixture.config()).use { secateur ->
        secateur.start()
        withTimeout(60_000) { secateur.awaitReady() }
        expect(ErrorKind.INVALID_ARGUMENT, "a wild temperature") {
            secateur.chat(question, Sampling(temperature = 9.0)).toList()
        }
        expect(ErrorKind.PROMPT_TOO_LONG, "an endless prompt") { secateur.complete("a".repeat(100_000)).toList() }
        expect(ErrorKind.INVALID_ARGUMENT, "a ratio above 1") { secateur.prune(PruneRequest(ratio = 2.0)).toList() }
        // What a collector throws is what the caller sees.
        val thrown = runCatching { secateur.chat(question, endless).collect { error("no more") } }.exceptionOrNull()
        check("a collector's own exception", thrown is IllegalStateException && thrown.message == "no more") { thrown }
        val callback = NativeCallback { error("from the callback") }
        val request = """{"prompt":"Once upon a time","max_tokens":50}"""
        val raw = runCatching { secateur.handleForTests { Native.generate(it, request, callback) } }.exceptionOrNull()
        check("a callback's exception", raw is IllegalStateException && raw.message == "from the callback") { raw }
        // A call that waits, from inside a callback.
        var inside: Throwable? = null
        val waiting = NativeCallback { inside = runCatching { secateur.stop() }.exceptionOrNull(); false }
        expect(ErrorKind.CANCELLED, "a callback that says no") {
            secateur.handleForTests { Native.generate(it, request, waiting) }
        }
        check("a stop in a callback", (inside as? SecateurException)?.kind == ErrorKind.REENTRANT) { inside }
        val odd = "\u0000 😀 \ud800 \"\\ \n\u0007"
        val sent = runCatching { secateur.complete(odd, short).toList() }
        check("any text may be sent", sent.isSuccess) { sent.exceptionOrNull() }
    }
}

private fun cancelling(fixture: Fixture) = runBlocking {
    Secateur(fixture.config("cancel")).use { secateur ->
        secateur.start()
        withTimeout(60_000) { secateur.awaitReady() }
        repeat(20) { check("the first piece only", secateur.chat(question, endless).first().isNotEmpty()) }
        // One chat after the other, until a cancellation meets one at work.
        val cancelled = async(Dispatchers.IO) {
            runCatching { while (true) secateur.chat(question, endless).toList() }.exceptionOrNull()
        }
        while (cancelled.isActive) {
            secateur.cancel()
            delay(1)
        }
        check("cancel ends a chat", (cancelled.await() as? SecateurException)?.kind == ErrorKind.CANCELLED)
        // A job that nobody follows any more is cancelled, and the next one like it goes on.
        val prune = PruneRequest(ratio = 0.3, calibrationTokens = 4096)
        secateur.prune(prune).first { it is PruneEvent.Progress }
        check("the job is over", secateur.chat(question, short).toList().isNotEmpty())
        val job = launch(Dispatchers.IO) { secateur.prune(prune).collect { } }
        job.cancel()
        job.join()
        check("the job is done in the end", secateur.prune(prune).toList().last() is PruneEvent.Finished)
    }
}

private fun concurrency(fixture: Fixture) = runBlocking {
    Secateur(fixture.config()).use { secateur ->
        val endpoint = secateur.start()
        withTimeout(60_000) { secateur.awaitReady() }
        val want = secateur.chat(question, short).toList().joinToString("")
        val answers = (0 until 8).map { worker ->
            async(Dispatchers.IO) {
                (0 until 5).map {
                    if (worker % 2 == 0) secateur.chat(question, short).toList().joinToString("")
                    else secateur.status().state.also { http(endpoint, "/health", null) }.let { want }
                }
            }
        }.awaitAll().flatten()
        check("every concurrent answer is right", answers.all { it == want })
        // Stopped under load: every call ends, with text or with an exception.
        val ended = AtomicInteger()
        val calls = (0 until 8).map {
            launch(Dispatchers.IO) {
                runCatching { secateur.chat(question, endless).toList() }
                ended.incrementAndGet()
            }
        }
        secateur.stop()
        withTimeout(60_000) { calls.forEach { it.join() } }
        check("every call has ended", ended.get() == 8)
    }
}

private fun residentKib(): Long =
    File("/proc/self/status").readLines().first { it.startsWith("VmRSS") }.filter(Char::isDigit).toLong()

private fun count(dir: String): Int = File(dir).list()?.size ?: 0

private fun cycles(fixture: Fixture, n: Int) = runBlocking {
    fun cycle() = Secateur(fixture.config()).use { secateur ->
        secateur.start()
        secateur.stop()
        secateur.start()
    }
    // Ours have ended when `stop` returns; the JVM's own come and go.
    suspend fun settles(folder: String, most: Int) =
        withTimeoutOrNull(10_000) { while (most < count(folder)) delay(100) } != null
    // Until a round leaves next to nothing: the JVM grows for a while as it compiles, what each start loses never ends. The C
    // program of crates/ffi holds the library alone to 1 KiB a start.
    val starts = n / 4
    val allowed = 1_024 + starts * 8L
    var grown = 0L
    for (round in 1..8) {
        val (threads, files) = count("/proc/self/task") to count("/proc/self/fd")
        System.gc()
        val before = residentKib()
        repeat(starts / 2) { cycle() }
        if (1 < round) {
            check("no thread is left", settles("/proc/self/task", threads + 2)) { "$threads -> ${count("/proc/self/task")}" }
            check("no file is left open", settles("/proc/self/fd", files + 2)) { "$files -> ${count("/proc/self/fd")}" }
        } else {
            delay(3_000)
        }
        System.gc()
        grown = residentKib() - before
        println("$starts starts: $grown KiB more, ${count("/proc/self/task")} threads, ${count("/proc/self/fd")} files")
        if (3 < round && grown < allowed) break
    }
    check("no memory is lost", grown < allowed) { "$grown KiB over $starts starts" }
    Secateur(fixture.config()).use { secateur ->
        secateur.start()
        withTimeout(60_000) { secateur.awaitReady() }
        check("it still answers", secateur.chat(question, short).toList().isNotEmpty())
    }
}

private fun pureParts() {
    val texts = listOf("""{"a":[1,2.5,-3e2,true,false,null,"x\n\u00e9\ud83d\ude00"],"b":{}}""", "[]", "0", "\"\"")
    for (text in texts) check("JSON goes round", Json.read(Json.write(Json.read(text))) == Json.read(text)) { text }
    for (text in listOf("", "{", "[1,]", "{\"a\"}", "tru", "1 2", "\"\\x\"", "\"\\u12\"", "--1", "[".repeat(100))) {
        check("no JSON", runCatching { Json.read(text) }.exceptionOrNull() is IllegalArgumentException) { text }
    }
    val levels = MemoryLevels()
    val mib = 1L shl 20
    val readings = listOf(
        Triple(900, false, null), Triple(380, false, MemoryPressure.MODERATE), Triple(390, false, null),
        Triple(150, false, MemoryPressure.CRITICAL), Triple(250, false, null), Triple(310, false, null),
        Triple(320, false, null), Triple(330, false, MemoryPressure.MODERATE), Triple(600, true, MemoryPressure.CRITICAL),
        Triple(600, false, null), Triple(600, false, null), Triple(200, false, null), Triple(600, false, null),
        Triple(600, false, null), Triple(600, false, MemoryPressure.NORMAL),
    )
    readings.forEachIndexed { index, (available, low, want) ->
        val got = levels.read(available * mib, 200 * mib, low)
        check("reading $index gives $want", got == want) { got }
    }
    check("budget", memoryBudgetBytes(3_000 * mib, 200 * mib, 8_000 * mib) == 2_800 * mib)
    check("budget of a full device", memoryBudgetBytes(100 * mib, 200 * mib, 4_000 * mib) == 0L)
    check("budget with a ceiling", memoryBudgetBytes(7_000 * mib, 200 * mib, 8_000 * mib) == 4_000 * mib)
    check("budget after a kill", memoryBudgetBytes(3_000 * mib, 200 * mib, 8_000 * mib, 1_000 * mib) == 800 * mib)
    check("heat", (0..6).map(::thermalState).map { it.ordinal } == listOf(0, 1, 2, 2, 3, 3, 3))
}

fun main(arguments: Array<String>) {
    val fixture = Fixture(arguments[0], File(arguments[1]))
    val parts = listOf<Pair<String, () -> Unit>>(
        "pure parts" to ::pureParts,
        "life of an app" to { lifeOfAnApp(fixture) },
        "hints" to { hints(fixture) },
        "errors" to { errors(fixture) },
        "cancelling" to { cancelling(fixture) },
        "concurrency" to { concurrency(fixture) },
        "cycles" to { cycles(fixture, arguments[2].toInt()) },
    )
    for ((name, part) in parts) {
        val error = runCatching(part).exceptionOrNull()
        check(name, error == null) { error?.stackTraceToString() }
        println("$name: $checks checks so far, $failures failed")
    }
    if (failures > 0) exitProcess(1)
    println("all $checks checks passed")
}
