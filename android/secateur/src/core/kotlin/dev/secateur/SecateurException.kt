package dev.secateur

/** Why a call failed; the same kinds as `SecateurCode` of the C interface. */
enum class ErrorKind {
    OK, INVALID_ARGUMENT, INVALID_HANDLE, REENTRANT, NOT_RUNNING, ALREADY_RUNNING, NOT_READY, BUSY, CANCELLED, REFUSED,
    NOT_FOUND, CONFLICT, BAD_MODEL, IO, PROMPT_TOO_LONG, INTERNAL,
}

/** A call failed: [kind] for programs, [message] for people. */
class SecateurException(code: Int, override val message: String) : RuntimeException(message) {
    val kind: ErrorKind = ErrorKind.entries.getOrElse(code) { ErrorKind.INTERNAL }

    override fun toString(): String = "SecateurException($kind: $message)"
}
