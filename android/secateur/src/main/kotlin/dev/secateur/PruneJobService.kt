package dev.secateur

import android.app.job.JobInfo
import android.app.job.JobParameters
import android.app.job.JobScheduler
import android.app.job.JobService
import android.content.ComponentName
import android.content.Context
import android.os.PersistableBundle
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.launch

/**
 * Prunes a model while the device charges and nobody uses it. The system may stop the job at any time; what is done so
 * far is kept, and the next run goes on from there.
 */
class PruneJobService : JobService() {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.IO)
    private var work: Job? = null

    override fun onStartJob(params: JobParameters): Boolean {
        val model = params.extras.getString(MODEL) ?: return false
        val ratio = params.extras.getDouble(RATIO, Double.NaN).takeUnless(Double::isNaN)
        work = scope.launch {
            val again = runCatching { prune(model, ratio) }.exceptionOrNull().let { error ->
                // What cannot work will not work tomorrow; a busy device may be free then.
                error is SecateurException && error.kind in setOf(ErrorKind.CANCELLED, ErrorKind.BUSY, ErrorKind.IO)
            }
            jobFinished(params, again)
        }
        return true
    }

    private suspend fun prune(model: String, ratio: Double?) {
        val config = SecateurConfig(
            stateDir = noBackupFilesDir.resolve("secateur").path,
            model = model,
            memoryBudget = suggestedMemoryBudget(this),
            http = false,
        )
        Secateur(config).use { secateur ->
            val memory = MemoryWatch(this) { secateur.runCatching { memoryPressure(it) } }
            val heat = ThermalWatch(this) { secateur.runCatching { thermal(it) } }
            secateur.start()
            memory.start()
            heat.start()
            try {
                secateur.prune(PruneRequest(ratio = ratio, activate = false)).collect { }
            } finally {
                memory.stop()
                heat.stop()
            }
        }
    }

    override fun onStopJob(params: JobParameters): Boolean {
        work?.cancel()
        return true
    }

    companion object {
        private const val JOB_ID = 0x5ec1
        private const val MODEL = "model"
        private const val RATIO = "ratio"

        /** Asks for a prune of [model] when the device charges and is idle; replaces what was asked before. */
        fun schedule(context: Context, model: String, ratio: Double? = null) {
            val extras = PersistableBundle()
            extras.putString(MODEL, model)
            if (ratio != null) extras.putDouble(RATIO, ratio)
            val info = JobInfo.Builder(JOB_ID, ComponentName(context, PruneJobService::class.java))
                .setRequiresCharging(true)
                .setRequiresDeviceIdle(true)
                .setPersisted(true)
                .setExtras(extras)
                .build()
            val scheduler = context.getSystemService(Context.JOB_SCHEDULER_SERVICE) as JobScheduler
            scheduler.schedule(info)
        }
    }
}
