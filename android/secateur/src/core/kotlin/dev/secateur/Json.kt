package dev.secateur

/**
 * JSON as maps, lists, strings, numbers (Long or Double), booleans and null: enough for what the native library says,
 * and the same on Android and on a desktop. Text that is no JSON throws [IllegalArgumentException].
 */
internal object Json {
    fun write(value: Any?): String = StringBuilder().also { write(value, it) }.toString()

    private fun write(value: Any?, out: StringBuilder) {
        when (value) {
            null, is Boolean, is Int, is Long -> out.append(value)
            is Float, is Double -> {
                require((value as Number).toDouble().isFinite()) { "JSON has no $value" }
                out.append(value)
            }
            is String -> quote(value, out)
            is Map<*, *> -> {
                out.append('{')
                value.entries.filter { it.value != null }.forEachIndexed { index, (key, item) ->
                    if (index > 0) out.append(',')
                    quote(key as String, out)
                    out.append(':')
                    write(item, out)
                }
                out.append('}')
            }
            is List<*> -> {
                out.append('[')
                value.forEachIndexed { index, item ->
                    if (index > 0) out.append(',')
                    write(item, out)
                }
                out.append(']')
            }
            else -> throw IllegalArgumentException("no JSON for ${value::class}")
        }
    }

    private fun quote(text: String, out: StringBuilder) {
        out.append('"')
        // A lone half of a surrogate pair is no character: encoding makes it a question mark.
        for (char in text.toByteArray().decodeToString()) {
            when {
                char == '"' || char == '\\' -> out.append('\\').append(char)
                char < ' ' -> out.append("\\u%04x".format(char.code))
                else -> out.append(char)
            }
        }
        out.append('"')
    }

    fun read(text: String): Any? = Reader(text).run { value(0).also { end() } }

    @Suppress("UNCHECKED_CAST")
    fun readObject(text: String): Map<String, Any?> =
        read(text) as? Map<String, Any?> ?: throw IllegalArgumentException("not an object: $text")

    private class Reader(private val text: String) {
        private var at = 0

        private fun fail(): Nothing = throw IllegalArgumentException("no JSON at $at")

        private fun peek(): Char {
            while (at < text.length && text[at] in " \t\r\n") at++
            return if (at < text.length) text[at] else fail()
        }

        private fun expect(char: Char) {
            if (peek() != char) fail()
            at++
        }

        fun end() {
            if (text.substring(at).isNotBlank()) fail()
        }

        fun value(depth: Int): Any? {
            if (depth > MAX_DEPTH) fail()
            return when (peek()) {
                '{' -> obj(depth)
                '[' -> list(depth)
                '"' -> string()
                't' -> word("true", true)
                'f' -> word("false", false)
                'n' -> word("null", null)
                else -> number()
            }
        }

        private fun <T> word(word: String, value: T): T {
            if (!text.startsWith(word, at)) fail()
            at += word.length
            return value
        }

        private fun obj(depth: Int): Map<String, Any?> = buildMap {
            expect('{')
            if (peek() != '}') {
                do {
                    peek()
                    val key = string()
                    expect(':')
                    put(key, value(depth + 1))
                } while (more())
            }
            expect('}')
        }

        private fun list(depth: Int): List<Any?> = buildList {
            expect('[')
            if (peek() != ']') do add(value(depth + 1)) while (more())
            expect(']')
        }

        private fun more(): Boolean = (peek() == ',').also { if (it) at++ }

        private fun string(): String {
            if (text[at++] != '"') fail()
            val out = StringBuilder()
            while (true) {
                val char = if (at < text.length) text[at++] else fail()
                when (char) {
                    '"' -> return out.toString()
                    '\\' -> out.append(escaped())
                    else -> out.append(char)
                }
            }
        }

        private fun escaped(): Char = when (val char = if (at < text.length) text[at++] else fail()) {
            'n' -> '\n'
            't' -> '\t'
            'r' -> '\r'
            'b' -> '\b'
            'f' -> '\u000c'
            '"', '\\', '/' -> char
            'u' -> {
                if (at + 4 > text.length) fail()
                text.substring(at, at + 4).toIntOrNull(16)?.toChar()?.also { at += 4 } ?: fail()
            }
            else -> fail()
        }

        private fun number(): Number {
            val from = at
            while (at < text.length && text[at] in "+-.0123456789eE") at++
            val word = text.substring(from, at)
            return word.toLongOrNull() ?: word.toDoubleOrNull() ?: fail()
        }
    }

    private const val MAX_DEPTH = 64
}
