import CSecateur

/// A call failed: `code` for programs, `message` for people.
public struct SecateurError: Error, Equatable, CustomStringConvertible, Sendable {
    /// The same kinds as `SecateurCode` of the C interface.
    public enum Code: Int32, Sendable {
        case ok, invalidArgument, invalidHandle, reentrant, notRunning, alreadyRunning, notReady, busy, cancelled
        case refused, notFound, conflict, badModel, io, promptTooLong, `internal`
    }

    public let code: Code
    public let message: String

    public var description: String { "\(code): \(message)" }

    /// Turns the end of a call into an error; must run on the thread of that call.
    static func check(_ code: SecateurCode) throws {
        let value = Int32(code.rawValue)
        if value == 0 { return }
        let message = secateur_last_error().map { String(cString: $0) } ?? "no message"
        throw SecateurError(code: Code(rawValue: value) ?? .internal, message: message)
    }
}
