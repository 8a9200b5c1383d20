import Foundation
import XCTest

@testable import Secateur

// Needs SECATEUR_TEST_MODEL, a tiny model: tests/ios/run makes one.
final class SecateurTests: XCTestCase {
    private var folder = ""
    private let question = [Message(role: "user", content: "Once upon a time")]
    private let short = Sampling(maxTokens: 12)
    private let endless = Sampling(maxTokens: 200, temperature: 1.5, seed: 3)

    override func setUpWithError() throws {
        folder = NSTemporaryDirectory() + "secateur-" + UUID().uuidString
    }

    override func tearDownWithError() throws {
        try? FileManager.default.removeItem(atPath: folder)
    }

    private func server(_ change: (inout Configuration) -> Void = { _ in }) throws -> SecateurServer {
        let model = try XCTUnwrap(ProcessInfo.processInfo.environment["SECATEUR_TEST_MODEL"])
        var configuration = Configuration(stateDirectory: folder, model: model)
        configuration.memoryBudget = "1GiB"
        configuration.threads = 1
        change(&configuration)
        return try SecateurServer(configuration)
    }

    private func all<T>(_ stream: AsyncThrowingStream<T, Error>) async throws -> [T] {
        var items: [T] = []
        for try await item in stream { items.append(item) }
        return items
    }

    private func expect(_ code: SecateurError.Code, line: UInt = #line, _ call: () async throws -> Void) async {
        do {
            try await call()
            XCTFail("no error", line: line)
        } catch {
            XCTAssertEqual((error as? SecateurError)?.code, code, "\(error)", line: line)
        }
    }

    func testTheLifeOfAnApp() async throws {
        let server = try server()
        let first = try server.start()
        XCTAssertNotEqual(first.port, 0)
        XCTAssertEqual(first.token.count, 64)
        XCTAssertFalse(first.description.contains(first.token))
        await expect(.alreadyRunning) { try server.start() }
        try await server.ready()
        let pieces = try await all(server.model.chat(question, short))
        XCTAssertFalse(pieces.joined().isEmpty)
        let again = try await all(server.model.chat(question, short))
        XCTAssertEqual(pieces.joined(), again.joined())
        XCTAssertNotNil(try server.plan(ratio: 0.3)["ratio"])

        let events = try await all(server.model.prune(PruneRequest(ratio: 0.3, calibrationTokens: 512)))
        guard case .finished(let model)? = events.last else { return XCTFail("\(events)") }
        XCTAssertFalse(model.isEmpty)
        XCTAssertTrue(events.contains { if case .progress = $0 { true } else { false } })
        XCTAssertTrue(events.contains { if case .planned = $0 { true } else { false } })
        try await server.ready()
        let pruned = try await all(server.model.complete("Once", short))
        XCTAssertFalse(pruned.isEmpty)

        try server.stop()
        await expect(.notRunning) { _ = try await self.all(server.model.chat(self.question)) }
        let second = try server.start()
        XCTAssertNotEqual(first.token, second.token)
    }

    func testHints() async throws {
        let server = try server { $0.http = .off }
        XCTAssertEqual(try server.start(), Endpoint(port: 0, token: ""))
        try await server.ready()
        for state in ThermalState.allCases { try server.thermal(state) }
        try server.thermal(.nominal)
        try server.memoryPressure(.moderate)
        _ = try await all(server.model.chat(question, short))
        try server.memoryPressure(.critical)
        await expect(.notReady) { _ = try await self.all(server.model.chat(self.question, self.short)) }
        try server.memoryPressure(.normal)
        try await server.ready()
        _ = try await all(server.model.chat(question, short))
    }

    func testErrorsAndCancelling() async throws {
        await expect(.invalidArgument) { _ = try SecateurServer(Configuration(stateDirectory: "here")) }
        let server = try server()
        await expect(.notRunning) { try server.cancel() }
        try server.start()
        try await server.ready()
        await expect(.invalidArgument) { _ = try await self.all(server.model.chat(self.question, Sampling(temperature: 9))) }
        await expect(.promptTooLong) {
            _ = try await self.all(server.model.complete(String(repeating: "a", count: 100_000)))
        }
        for try await piece in server.model.chat(question, endless) {
            XCTAssertFalse(piece.isEmpty)
            break
        }
        await expect(.cancelled) {
            // One chat after the other, until a cancellation meets one at work.
            while true {
                for try await _ in server.model.chat(self.question, self.endless) { try server.cancel() }
            }
        }
    }

    func testStartsAndStops() async throws {
        let server = try server()
        for _ in 0..<100 {
            try server.start()
            try server.stop()
        }
        let answers = try await withThrowingTaskGroup(of: String.self) { group in
            try server.start()
            try await server.ready()
            for _ in 0..<6 { group.addTask { try await self.all(server.model.chat(self.question, self.short)).joined() } }
            return try await group.reduce(into: Set<String>()) { $0.insert($1) }
        }
        XCTAssertEqual(answers.count, 1)
    }
}
