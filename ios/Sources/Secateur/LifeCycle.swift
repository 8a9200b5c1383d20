#if canImport(UIKit) && !os(watchOS)
import Dispatch
import Foundation
import UIKit

/// Ties a server to the life of an app: stopped in the background (where its socket would be taken and its memory
/// counts against it), started again in front, and told what the system says about memory and heat.
@MainActor
public final class LifeCycle {
    private let server: SecateurServer
    private let onStart: (Result<Endpoint, Error>) -> Void
    private let work = DispatchQueue(label: "dev.secateur.life")
    private var observers: [NSObjectProtocol] = []
    private var pressure: DispatchSourceMemoryPressure?

    /// `onStart` gets port and token of each start, on the main thread.
    public init(_ server: SecateurServer, onStart: @escaping (Result<Endpoint, Error>) -> Void) {
        self.server = server
        self.onStart = onStart
        let center = NotificationCenter.default
        let queue = OperationQueue.main
        observers = [
            center.addObserver(forName: UIApplication.didEnterBackgroundNotification, object: nil, queue: queue) {
                [weak self] _ in MainActor.assumeIsolated { self?.leave() }
            },
            center.addObserver(forName: UIApplication.willEnterForegroundNotification, object: nil, queue: queue) {
                [weak self] _ in MainActor.assumeIsolated { self?.enter() }
            },
            center.addObserver(forName: ProcessInfo.thermalStateDidChangeNotification, object: nil, queue: queue) {
                [weak self] _ in MainActor.assumeIsolated { self?.passOnHeat() }
            },
        ]
        let source = DispatchSource.makeMemoryPressureSource(eventMask: .all, queue: work)
        source.setEventHandler { [server, weak source] in
            guard let event = source?.data else { return }
            let level: MemoryPressure =
                event.contains(.critical) ? .critical : event.contains(.warning) ? .moderate : .normal
            try? server.memoryPressure(level)
        }
        source.resume()
        pressure = source
        enter()
    }

    /// Ends it for good.
    public func end() {
        observers.forEach(NotificationCenter.default.removeObserver)
        observers = []
        pressure?.cancel()
        leave()
    }

    private func enter() {
        work.async { [server] in
            let result = Result { try server.start() }
            DispatchQueue.main.async {
                MainActor.assumeIsolated {
                    self.onStart(result)
                    self.passOnHeat()
                }
            }
        }
    }

    private func leave() {
        // The system gives a few seconds for this.
        let task = UIApplication.shared.beginBackgroundTask(withName: "secateur.stop")
        work.async { [server] in
            try? server.stop()
            DispatchQueue.main.async { UIApplication.shared.endBackgroundTask(task) }
        }
    }

    private func passOnHeat() {
        let state = ThermalState(rawValue: Int32(ProcessInfo.processInfo.thermalState.rawValue)) ?? .critical
        work.async { [server] in try? server.thermal(state) }
    }
}
#endif
