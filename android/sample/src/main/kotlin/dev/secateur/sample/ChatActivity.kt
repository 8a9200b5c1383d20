package dev.secateur.sample

import android.app.Activity
import android.content.ComponentName
import android.content.Context
import android.content.Intent
import android.content.ServiceConnection
import android.os.Bundle
import android.os.IBinder
import android.widget.Button
import android.widget.EditText
import android.widget.TextView
import dev.secateur.Message
import dev.secateur.Sampling
import dev.secateur.SecateurException
import dev.secateur.SecateurService
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.MainScope
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

/** A chat with the model on this device. */
class ChatActivity : Activity() {
    private val scope = MainScope()
    private val binder = CompletableDeferred<SecateurService.Local>()
    private val messages = mutableListOf<Message>()
    private lateinit var conversation: TextView
    private lateinit var question: EditText
    private lateinit var send: Button

    private val connection = object : ServiceConnection {
        override fun onServiceConnected(name: ComponentName, service: IBinder) {
            binder.complete(service as SecateurService.Local)
        }

        override fun onServiceDisconnected(name: ComponentName) = Unit
    }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.chat)
        conversation = findViewById(R.id.conversation) as TextView
        question = findViewById(R.id.question) as EditText
        send = findViewById(R.id.send) as Button
        val model = filesDir.resolve("model.gguf")
        if (!model.exists()) {
            conversation.text = getString(R.string.no_model, model.path)
            send.isEnabled = false
            return
        }
        SecateurService.start(this, model.path)
        bindService(Intent(this, SecateurService::class.java), connection, Context.BIND_AUTO_CREATE)
        send.setOnClickListener { ask(question.text.toString().trim()) }
    }

    private fun ask(text: String) {
        if (text.isEmpty()) return
        question.text.clear()
        send.isEnabled = false
        messages += Message("user", text)
        conversation.append("\n$text\n\n")
        scope.launch {
            val answer = StringBuilder()
            try {
                val secateur = binder.await().secateur()
                secateur.awaitReady()
                secateur.chat(messages.toList(), Sampling(maxTokens = 512, temperature = 0.7, topP = 0.9))
                    .collect { piece ->
                        answer.append(piece)
                        conversation.append(piece)
                    }
                messages += Message("assistant", answer.toString())
            } catch (error: SecateurException) {
                messages.removeAt(messages.lastIndex)
                conversation.append(error.message)
            }
            conversation.append("\n")
            send.isEnabled = true
        }
    }

    override fun onDestroy() {
        scope.cancel()
        if (binder.isCompleted) unbindService(connection)
        super.onDestroy()
    }
}
