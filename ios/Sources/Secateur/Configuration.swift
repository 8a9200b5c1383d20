import Foundation

/// What a service is given at its making. Only `stateDirectory` must be said.
public struct Configuration: Encodable, Sendable {
    /// Folder of the store, for example in Application Support. Absolute.
    public var stateDirectory: String
    /// A model file; the newest entry of the store when absent.
    public var model: String?
    /// A pruned form of the model that guesses ahead: answers stay the same.
    public var draft: String?
    /// `auto`, a size (`900MiB`) or a percentage (`40%`): the bound on the whole process.
    public var memoryBudget = "auto"
    public var threads: Int?
    public var contextLength: Int?
    /// Answer on localhost too, for whoever has the token.
    public var http: HTTP = .localhost
    /// 0 lets the system choose a free port.
    public var port: UInt16 = 0

    public enum HTTP: String, Encodable, Sendable { case localhost, off }

    public init(stateDirectory: String, model: String? = nil) {
        self.stateDirectory = stateDirectory
        self.model = model
    }

    enum CodingKeys: String, CodingKey {
        case stateDirectory = "state_dir", model, draft, memoryBudget = "memory_budget", threads = "n_threads"
        case contextLength = "context_len", http, port
    }
}

public struct Message: Codable, Equatable, Sendable {
    public var role: String
    public var content: String

    public init(role: String, content: String) {
        self.role = role
        self.content = content
    }
}

/// How tokens are chosen. Without settings the likeliest is taken each time.
public struct Sampling: Sendable {
    public var maxTokens: Int?
    public var temperature: Double?
    public var topK: Int?
    public var topP: Double?
    public var seed: UInt64?
    public var stop: [String] = []

    public init(maxTokens: Int? = nil, temperature: Double? = nil, topP: Double? = nil, seed: UInt64? = nil) {
        self.maxTokens = maxTokens
        self.temperature = temperature
        self.topP = topP
        self.seed = seed
    }
}

struct GenerateRequest: Encodable {
    var messages: [Message]?
    var prompt: String?
    var sampling: Sampling

    enum CodingKeys: String, CodingKey {
        case messages, prompt, stop, seed, temperature
        case maxTokens = "max_tokens", topK = "top_k", topP = "top_p"
    }

    func encode(to encoder: Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encodeIfPresent(messages, forKey: .messages)
        try container.encodeIfPresent(prompt, forKey: .prompt)
        try container.encodeIfPresent(sampling.maxTokens, forKey: .maxTokens)
        try container.encodeIfPresent(sampling.temperature, forKey: .temperature)
        try container.encodeIfPresent(sampling.topK, forKey: .topK)
        try container.encodeIfPresent(sampling.topP, forKey: .topP)
        try container.encodeIfPresent(sampling.seed, forKey: .seed)
        try container.encode(sampling.stop, forKey: .stop)
    }
}

/// What to prune and how. Without a ratio the memory budget decides how much is cut.
public struct PruneRequest: Encodable, Sendable {
    public var ratio: Double?
    public var memoryBudget: String?
    public var calibrationTokens: Int?
    public var calibrationText: String?
    public var seed: UInt64?
    /// Serve the result when it is done.
    public var activate = true

    public init(ratio: Double? = nil, calibrationTokens: Int? = nil) {
        self.ratio = ratio
        self.calibrationTokens = calibrationTokens
    }

    enum CodingKeys: String, CodingKey {
        case ratio, memoryBudget = "memory_budget", calibrationTokens = "calibration_tokens"
        case calibrationText = "calibration_text", seed, activate
    }
}

/// What a running prune job reports.
public enum PruneEvent: Equatable, Sendable {
    /// How far it is: `done` from 0 to 1.
    case progress(stage: String, done: Double, layer: Int?, layers: Int)
    /// The plan is made: why so much is cut, in words.
    case planned(ratio: Double, reason: String)
    /// The end: the pruned model's id in the store.
    case finished(model: String)
}

/// How short of memory the device is.
public enum MemoryPressure: Int32, Sendable { case normal, moderate, critical }

/// How hot the device is.
public enum ThermalState: Int32, CaseIterable, Sendable { case nominal, fair, serious, critical }
