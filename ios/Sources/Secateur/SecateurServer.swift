import CSecateur
import Foundation

/// Where the service answers, and the token of this start that it wants to see. Port 0: no HTTP.
public struct Endpoint: Equatable, CustomStringConvertible, Sendable {
    public let port: UInt16
    public let token: String

    public var baseURL: String { "http://127.0.0.1:\(port)" }
    /// The token stays out of logs.
    public var description: String { "Endpoint(port: \(port))" }
}

/// One service in this process: a model that fits the device, and answers.
///
/// Any thread may call anything. `start` and `stop` take a moment: call them away from the main thread. The system
/// suspends an app in the background and takes its sockets: stop when the scene enters the background, start when it
/// comes back (`LifeCycle` does that); every start makes a new port and token.
public final class SecateurServer: @unchecked Sendable {
    let handle: UInt64

    public init(_ configuration: Configuration) throws {
        var handle: UInt64 = 0
        try SecateurError.check(secateur_create(try json(configuration), &handle))
        self.handle = handle
    }

    deinit {
        // A handle that is not in use inside a callback can always be freed.
        _ = secateur_free(handle)
    }

    /// Starts the service; the model is made ready behind it, see `ready`.
    @discardableResult
    public func start() throws -> Endpoint {
        var endpoint = SecateurEndpoint()
        try SecateurError.check(secateur_start(handle, &endpoint))
        let token = withUnsafeBytes(of: &endpoint.token) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        return Endpoint(port: endpoint.port, token: token)
    }

    /// Stops the service if it runs. It may be started again, with a new token.
    public func stop() throws {
        try SecateurError.check(secateur_stop(handle))
    }

    /// Waits until the model answers; throws `notReady` when it never will.
    public func ready() async throws {
        while true {
            try Task.checkCancellation()
            let done = try await onOwnThread { () -> Bool in
                let code = secateur_wait_ready(self.handle, 100)
                if Int32(code.rawValue) == SecateurError.Code.notReady.rawValue, self.isOnItsWay { return false }
                try SecateurError.check(code)
                return true
            }
            if done { return }
        }
    }

    /// True while a model is being loaded, pruned, or waits for memory.
    private var isOnItsWay: Bool {
        guard let status = try? status(), let outer = status["status"] as? [String: Any],
            let readiness = outer["readiness"] as? [String: Any], let state = readiness["state"] as? String
        else { return false }
        return ["starting", "loading", "pruning", "released", "ready"].contains(state)
    }

    /// Status and memory, as the native library says it.
    public func status() throws -> [String: Any] {
        try object(text { secateur_status(handle, $0) })
    }

    /// What would be cut for `ratio`, or for the budget when absent; changes nothing.
    public func plan(ratio: Double? = nil) throws -> [String: Any] {
        let query = try json(ratio.map { ["ratio": $0] } ?? [:])
        return try object(text { secateur_plan(handle, query, $0) })
    }

    /// The model, for calls without HTTP.
    public var model: SecateurModel { SecateurModel(server: self) }

    /// Ends every generation and prune job at work: they throw `cancelled`.
    public func cancel() throws {
        try SecateurError.check(secateur_cancel(handle))
    }

    /// Passes on what the system says about memory; with `.critical` the model is let go of until `.normal`.
    public func memoryPressure(_ level: MemoryPressure) throws {
        try SecateurError.check(secateur_memory_pressure(handle, level.rawValue))
    }

    /// Passes on what the system says about heat; the service rests accordingly.
    public func thermal(_ state: ThermalState) throws {
        try SecateurError.check(secateur_thermal(handle, state.rawValue))
    }

    /// Takes over a text that the library wrote.
    func text(_ call: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) -> SecateurCode) throws -> String {
        var text: UnsafeMutablePointer<CChar>?
        let code = call(&text)
        defer { secateur_string_free(text) }
        try SecateurError.check(code)
        return text.map { String(cString: $0) } ?? ""
    }
}

func json(_ value: some Encodable) throws -> String {
    String(decoding: try JSONEncoder().encode(value), as: UTF8.self)
}

func object(_ text: String) throws -> [String: Any] {
    let value = try JSONSerialization.jsonObject(with: Data(text.utf8))
    guard let object = value as? [String: Any] else {
        throw SecateurError(code: .internal, message: "not an object: \(text)")
    }
    return object
}

/// Runs a call that blocks on a thread of its own: the pool of Swift's concurrency must not be held up.
func onOwnThread<T: Sendable>(_ call: @escaping @Sendable () throws -> T) async throws -> T {
    try await withCheckedThrowingContinuation { continuation in
        let thread = Thread { continuation.resume(with: Result(catching: call)) }
        thread.stackSize = 1 << 20
        thread.start()
    }
}
