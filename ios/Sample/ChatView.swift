import Secateur
import SwiftUI

/// A chat with the model on this device: put into an app's WindowGroup.
struct ChatView: View {
    @StateObject private var chat = Chat()
    @State private var question = ""

    var body: some View {
        VStack {
            ScrollView {
                VStack(alignment: .leading, spacing: 12) {
                    ForEach(Array(chat.messages.enumerated()), id: \.offset) { _, message in
                        Text(message.content)
                            .frame(maxWidth: .infinity, alignment: message.role == "user" ? .trailing : .leading)
                            .textSelection(.enabled)
                    }
                    if let problem = chat.problem { Text(problem).foregroundStyle(.red) }
                }
            }
            HStack {
                TextField("Ask something", text: $question)
                    .textFieldStyle(.roundedBorder)
                Button("Send") {
                    chat.ask(question)
                    question = ""
                }
                .disabled(chat.isBusy || question.isEmpty)
            }
        }
        .padding()
        .task { chat.start() }
    }
}

@MainActor
final class Chat: ObservableObject {
    @Published private(set) var messages: [Message] = []
    @Published private(set) var problem: String?
    @Published private(set) var isBusy = false
    private var server: SecateurServer?
    private var life: LifeCycle?

    func start() {
        guard server == nil else { return }
        do {
            let folder = URL.applicationSupportDirectory.appending(path: "secateur").path()
            let model = Bundle.main.path(forResource: "model", ofType: "gguf")
            let server = try SecateurServer(Configuration(stateDirectory: folder, model: model))
            self.server = server
            life = LifeCycle(server) { [weak self] result in
                if case .failure(let error) = result { self?.problem = String(describing: error) }
            }
        } catch {
            problem = String(describing: error)
        }
    }

    func ask(_ text: String) {
        guard let server, !isBusy else { return }
        isBusy = true
        problem = nil
        messages.append(Message(role: "user", content: text))
        let conversation = messages
        messages.append(Message(role: "assistant", content: ""))
        Task {
            defer { isBusy = false }
            do {
                try await server.ready()
                let sampling = Sampling(maxTokens: 512, temperature: 0.7, topP: 0.9)
                for try await piece in server.model.chat(conversation, sampling) {
                    messages[messages.count - 1].content += piece
                }
            } catch {
                problem = String(describing: error)
            }
        }
    }
}
