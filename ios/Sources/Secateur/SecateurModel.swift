import CSecateur
import Foundation

/// The model of a running server, called directly. Leaving a stream ends its work within one token.
public struct SecateurModel: Sendable {
    let server: SecateurServer

    /// Continues a conversation, piece by piece.
    public func chat(_ messages: [Message], _ sampling: Sampling = Sampling()) -> AsyncThrowingStream<String, Error> {
        generate(GenerateRequest(messages: messages, sampling: sampling))
    }

    /// Continues a text, piece by piece.
    public func complete(_ prompt: String, _ sampling: Sampling = Sampling()) -> AsyncThrowingStream<String, Error> {
        generate(GenerateRequest(prompt: prompt, sampling: sampling))
    }

    private func generate(_ request: GenerateRequest) -> AsyncThrowingStream<String, Error> {
        stream(request, { $0 }) { handle, text, callback, context in
            secateur_generate(handle, text, callback, context, nil)
        }
    }

    /// Prunes into the store. Leaving the stream cancels the job, which the next one like it takes up.
    public func prune(_ request: PruneRequest = PruneRequest()) -> AsyncThrowingStream<PruneEvent, Error> {
        stream(request, pruneEvent) { handle, text, callback, context in
            secateur_prune(handle, text, callback, context, nil)
        }
    }

    private typealias Call = @Sendable (UInt64, String, SecateurTextFn, UnsafeMutableRawPointer?) -> SecateurCode

    /// Runs a native call on a thread of its own; what it says, where it means something, becomes the stream.
    private func stream<T: Sendable>(
        _ request: some Encodable,
        _ meaning: @escaping @Sendable (String) -> T?,
        _ call: @escaping Call
    ) -> AsyncThrowingStream<T, Error> {
        let text = Result { try json(request) }
        let server = server
        return AsyncThrowingStream { continuation in
            let sink = Sink { piece in
                // Empty text asks whether anybody still listens.
                guard let item = piece.isEmpty ? nil : meaning(piece) else { return true }
                if case .terminated = continuation.yield(item) { return false }
                return true
            }
            continuation.onTermination = { _ in sink.close() }
            let thread = Thread {
                let context = Unmanaged.passUnretained(sink).toOpaque()
                do {
                    let code = call(server.handle, try text.get(), takeText, context)
                    try SecateurError.check(code)
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
                // Until here the library may call the sink.
                withExtendedLifetime(sink) {}
            }
            thread.stackSize = 1 << 20
            thread.start()
        }
    }
}

/// Where the native callback delivers; closed when nobody listens any more.
private final class Sink: @unchecked Sendable {
    private let lock = NSLock()
    private var isOpen = true
    private let take: @Sendable (String) -> Bool

    init(_ take: @escaping @Sendable (String) -> Bool) {
        self.take = take
    }

    func close() {
        lock.lock()
        defer { lock.unlock() }
        isOpen = false
    }

    /// False to cancel.
    func deliver(_ text: String) -> Bool {
        lock.lock()
        let open = isOpen
        lock.unlock()
        return open && take(text)
    }
}

private func takeText(context: UnsafeMutableRawPointer?, bytes: UnsafePointer<CChar>?, length: Int) -> Int32 {
    guard let context else { return 1 }
    let sink = Unmanaged<Sink>.fromOpaque(context).takeUnretainedValue()
    let text = String(decoding: UnsafeRawBufferPointer(start: bytes, count: length), as: UTF8.self)
    return sink.deliver(text) ? 0 : 1
}

/// Reads one event of a job; nil for those that say nothing new.
@Sendable
private func pruneEvent(_ text: String) -> PruneEvent? {
    guard let event = try? object(text), let data = event["data"] as? [String: Any] else { return nil }
    switch event["event"] as? String {
    case "progress":
        guard let stage = data["stage"] as? String, let done = data["done"] as? Double else { return nil }
        return .progress(
            stage: stage, done: done, layer: data["layer_idx"] as? Int, layers: data["n_layers"] as? Int ?? 0)
    case "planned":
        guard let ratio = data["ratio"] as? Double, let reason = data["reason"] as? String else { return nil }
        return .planned(ratio: ratio, reason: reason)
    case "state":
        guard data["state"] as? String == "succeeded", let model = data["model"] as? String else { return nil }
        return .finished(model: model)
    default:
        return nil
    }
}
