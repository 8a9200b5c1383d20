package dev.secateur

import android.content.Context
import android.os.Build
import android.os.PowerManager

/** Watches heat as long as a service runs; Android says so since version 10. */
internal class ThermalWatch(context: Context, private val onChange: (ThermalState) -> Unit) {
    private val power = context.getSystemService(Context.POWER_SERVICE) as PowerManager
    private var listener: PowerManager.OnThermalStatusChangedListener? = null

    fun start() {
        if (Build.VERSION.SDK_INT < 29) return
        val listener = PowerManager.OnThermalStatusChangedListener { onChange(thermalState(it)) }
        power.addThermalStatusListener(listener)
        this.listener = listener
    }

    fun stop() {
        listener?.let { if (Build.VERSION.SDK_INT >= 29) power.removeThermalStatusListener(it) }
        listener = null
    }
}
