package dev.secateur

/**
 * From what Android says about memory to a hint, with hysteresis so that a model does not come and go.
 *
 * `threshold` is where the system begins to kill background apps. Below it: critical. Below twice of it: moderate. The
 * way back needs half a threshold more than the way in, and critical ends only after [calmReadings] readings in a row.
 */
class MemoryLevels(private val calmReadings: Int = 3) {
    private var level = MemoryPressure.NORMAL
    private var calm = 0

    /** Takes one reading of `ActivityManager.MemoryInfo`; returns the hint to pass on, or null when it is the old one. */
    @Synchronized
    fun read(availableBytes: Long, thresholdBytes: Long, lowMemory: Boolean): MemoryPressure? {
        val wanted = when {
            lowMemory || availableBytes < thresholdBytes -> MemoryPressure.CRITICAL
            availableBytes < 2 * thresholdBytes -> MemoryPressure.MODERATE
            else -> MemoryPressure.NORMAL
        }
        if (wanted >= level) {
            calm = 0
            return change(wanted)
        }
        val enough = if (level == MemoryPressure.CRITICAL) thresholdBytes else 2 * thresholdBytes
        calm = if (availableBytes >= enough + thresholdBytes / 2) calm + 1 else 0
        return if (calm >= calmReadings) change(wanted).also { calm = 0 } else null
    }

    private fun change(to: MemoryPressure): MemoryPressure? {
        if (to == level) return null
        level = to
        return to
    }
}

/** From `PowerManager.THERMAL_STATUS_*` (0 none .. 6 shutdown) to a hint. */
fun thermalState(status: Int): ThermalState = when {
    status <= 0 -> ThermalState.NOMINAL
    status == 1 -> ThermalState.FAIR
    status == 2 || status == 3 -> ThermalState.SERIOUS
    else -> ThermalState.CRITICAL
}

/**
 * The memory budget to ask for: what is available above the threshold, at most [ceilingShare] of the device, and at
 * most 0.8 of what the app had when the system last killed it for memory.
 */
fun memoryBudgetBytes(
    availableBytes: Long,
    thresholdBytes: Long,
    totalBytes: Long,
    lastKilledAtBytes: Long? = null,
    ceilingShare: Double = 0.5,
): Long {
    val free = (availableBytes - thresholdBytes).coerceAtLeast(0)
    val ceiling = (totalBytes * ceilingShare).toLong()
    val learned = lastKilledAtBytes?.let { it / 10 * 8 } ?: Long.MAX_VALUE
    return minOf(free, ceiling, learned)
}
