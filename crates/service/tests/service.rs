//! A running service over a tiny model: requests, jobs, models and the end.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]

use secateur_service::api::{
    ChatMessage, ChatRequest, CompletionRequest, FinishReason, GenerationEvent, GenerationParams,
    JobEventKind, JobState, ModelKind, PlanQuery, Prompt, PruneQuery, Readiness, SamplingParams,
};
use secateur_service::{
    AddSpecial, EventStream, JobEvents, PlanSettings, PressureResponse, Service, ServiceError, ServiceHandle,
    ServiceOptions,
};
use secateur_test_support::{TinyLayer, TinyModel, TinyVocab};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

struct Running {
    service: Option<Service>,
    handle: ServiceHandle,
    dir: TempDir,
}

fn tiny() -> TinyModel {
    let layer = TinyLayer { heads: 4, kv_heads: 2, intermediate_size: 256 };
    TinyModel { layers: vec![layer; 6], ..TinyModel::default() }
}

fn options(dir: &TempDir, model: &TinyModel) -> ServiceOptions {
    let path: PathBuf = model.write_to(dir.path());
    ServiceOptions {
        model: Some(path.to_str().unwrap().to_owned()),
        memory_budget: "512MiB".into(),
        // What else the machine does is none of these tests' business.
        pressure: PressureResponse::Ignore,
        ..ServiceOptions::new(dir.path().join("state"))
    }
}

async fn start(change: impl FnOnce(&mut ServiceOptions)) -> Running {
    start_with(&tiny(), change).await
}

async fn start_with(model: &TinyModel, change: impl FnOnce(&mut ServiceOptions)) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir, model);
    change(&mut options);
    let service = Service::start(options).unwrap();
    let handle = service.handle();
    let mut readiness = handle.watch_readiness();
    let settled = |readiness: &Readiness| {
        matches!(readiness, Readiness::Ready | Readiness::Failed { .. } | Readiness::NoModel)
    };
    let state = readiness.wait_for(settled).await.unwrap().clone();
    assert_eq!(state, Readiness::Ready);
    Running { service: Some(service), handle, dir }
}

impl Running {
    async fn stop(mut self) {
        self.handle.shutdown(Duration::from_secs(5)).await;
        self.service.take().unwrap().join();
    }
}

/// A request that never ends by itself before `max_tokens`.
fn endless(max_tokens: usize) -> CompletionRequest {
    let vocab = TinyVocab::default();
    let logit_bias = [vocab.eos_id, vocab.endoftext_id, vocab.bos_id].map(|id| (id, -100.0)).to_vec();
    let sampling = SamplingParams { logit_bias, ..SamplingParams::default() };
    let params = GenerationParams { max_tokens: Some(max_tokens), sampling, ..GenerationParams::default() };
    CompletionRequest { prompt: Prompt::Text("Once upon a time".into()), params }
}

/// More tokens than any machine makes while a test looks away.
const AGES: usize = 60_000;

/// A model whose context has place for so many.
fn patient() -> TinyModel {
    TinyModel { context_length: 65_536, ..tiny() }
}

/// Waits until something holds that is bound to.
async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

struct Reply {
    text: String,
    events: usize,
    end: GenerationEvent,
}

async fn read(mut stream: EventStream) -> Reply {
    let mut reply =
        Reply { text: String::new(), events: 0, end: GenerationEvent::Failed(ServiceError::ShuttingDown) };
    while let Some(event) = stream.next().await {
        reply.events += 1;
        match event {
            GenerationEvent::Delta { text, .. } => reply.text.push_str(&text),
            GenerationEvent::Started { .. } => {}
            end => reply.end = end,
        }
    }
    reply
}

async fn last_state(mut events: JobEvents) -> (JobState, usize) {
    let (mut state, mut n_progress) = (None, 0);
    while let Some(event) = events.next().await {
        match event.kind {
            JobEventKind::State(view) => state = Some(view.state),
            JobEventKind::Progress(_) => n_progress += 1,
            JobEventKind::Planned(_) => {}
        }
    }
    (state.unwrap(), n_progress)
}

#[tokio::test]
async fn completions_chats_and_embeddings_are_answered() {
    let running = start(|_| {}).await;
    let handle = &running.handle;
    let first = read(handle.complete(&endless(12)).unwrap()).await;
    let second = read(handle.complete(&endless(12)).unwrap()).await;
    assert_eq!(first.text, second.text, "temperature 0 is deterministic");
    let GenerationEvent::Finished { reason, usage, .. } = second.end else { panic!("{:?}", second.end) };
    assert_eq!((reason, usage.completion_tokens), (FinishReason::Length, 12));
    assert_eq!(usage.cached_tokens + 1, usage.prompt_tokens, "all but the last token were in the cache");

    let mut request = endless(4);
    request.params.logprobs = Some(2);
    let mut stream = handle.complete(&request).unwrap();
    let mut n_logprobs = 0;
    while let Some(event) = stream.next().await {
        if let GenerationEvent::Delta { logprobs, .. } = event {
            assert!(logprobs.iter().all(|token| token.top.len() == 2 && token.chosen.logprob <= 0.0));
            n_logprobs += logprobs.len();
        }
    }
    assert_eq!(n_logprobs, 4);

    let message = ChatMessage { role: "user".into(), content: "Hello".into(), ..ChatMessage::default() };
    let params = GenerationParams { max_tokens: Some(3), ..GenerationParams::default() };
    let chat = ChatRequest { messages: vec![message.clone()], params };
    assert!(matches!(read(handle.chat(&chat).unwrap()).await.end, GenerationEvent::Finished { .. }));
    assert!(handle.apply_template(&[message]).unwrap().contains("Hello"));
    let tokens = handle.tokenize("Grüße, 世界", AddSpecial::No).unwrap();
    assert_eq!(handle.detokenize(&tokens).unwrap(), "Grüße, 世界");
    let embedding = handle.embed(&Prompt::Tokens(tokens.clone())).await.unwrap();
    assert_eq!((embedding.values.len(), embedding.prompt_tokens), (64, tokens.len()));
    let metrics = handle.metrics();
    assert_eq!((metrics.requests_total, metrics.requests_failed_total), (5, 0));
    assert_eq!(metrics.generated_tokens_total, 12 + 12 + 4 + 3);
    assert!(0 < metrics.rss_bytes && 0 < metrics.model_bytes);
    running.stop().await;
}

#[tokio::test]
async fn wrong_requests_are_refused_before_they_wait() {
    let running = start(|options| options.prune.plan.context_len = Some(64)).await;
    let handle = &running.handle;
    let request = |prompt: Prompt, change: fn(&mut GenerationParams)| {
        let mut params = GenerationParams::default();
        change(&mut params);
        handle.complete(&CompletionRequest { prompt, params }).map(drop)
    };
    let text = |text: &str| Prompt::Text(text.into());
    let cases = [
        (request(text(""), |_| {}), "prompt"),
        (request(Prompt::Tokens(vec![u32::MAX]), |_| {}), "prompt"),
        (request(text("a"), |p| p.sampling.temperature = f32::NAN), "temperature"),
        (request(text("a"), |p| p.stop = vec![String::new()]), "stop"),
        (request(text("a"), |p| p.logprobs = Some(99)), "top_logprobs"),
        (handle.chat(&ChatRequest::default()).map(drop), "messages"),
        (handle.start_prune(PruneQuery { ratio: Some(2.0), ..PruneQuery::default() }).map(drop), "ratio"),
        (
            handle.start_prune(PruneQuery { method: Some("axe".into()), ..PruneQuery::default() }).map(drop),
            "method",
        ),
        (handle.plan(&PlanQuery { dtype: Some("q1".into()), ..PlanQuery::default() }).map(drop), "dtype"),
        (
            handle.plan(&PlanQuery { memory_budget: Some("x".into()), ..PlanQuery::default() }).map(drop),
            "memory_budget",
        ),
    ];
    for (result, want) in cases {
        assert!(
            matches!(&result, Err(ServiceError::Invalid { param, .. }) if param == want),
            "{want}: {result:?}"
        );
    }
    let long = request(Prompt::Tokens(vec![5; 64]), |_| {});
    assert!(matches!(long, Err(ServiceError::PromptTooLong { prompt_tokens: 64, context_len: 64 })));
    let absent = PlanQuery { model: Some("../../etc/passwd".into()), ..PlanQuery::default() };
    assert!(matches!(handle.plan(&absent), Err(ServiceError::ModelNotFound { .. })));
    assert_eq!(handle.metrics().requests_total, 0);
    running.stop().await;
}

#[tokio::test]
async fn a_reader_that_goes_away_cancels_its_request() {
    let running = start_with(&patient(), |_| {}).await;
    let handle = &running.handle;
    let mut stream = handle.complete(&endless(AGES)).unwrap();
    assert!(matches!(stream.next().await, Some(GenerationEvent::Started { .. })));
    drop(stream);
    let next = read(handle.complete(&endless(1)).unwrap()).await;
    assert!(matches!(next.end, GenerationEvent::Finished { .. }));
    until(|| handle.metrics().requests_cancelled_total == 1).await;
    let metrics = handle.metrics();
    assert!(metrics.generated_tokens_total < AGES as u64, "{metrics:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let running = start(|options| (options.queue_len, options.parallel) = (2, 1)).await;
    let handle = &running.handle;
    let mut streams = Vec::new();
    // One is at work while two wait; on a busy machine, some may be answered before the next one asks.
    let refused = (0..100).find_map(|_| match handle.complete(&endless(200)) {
        Ok(stream) => {
            streams.push(stream);
            None
        }
        Err(error) => Some(error),
    });
    let Some(ServiceError::Busy { queue_len, retry_after }) = refused else { panic!("{refused:?}") };
    assert_eq!(queue_len, 2);
    assert!(Duration::from_secs(1) <= retry_after);
    assert_eq!(handle.metrics().requests_busy_total, 1);
    let queued = streams.pop().unwrap();
    drop(streams);
    assert!(matches!(read(queued).await.end, GenerationEvent::Finished { .. }), "what waited is answered");
    running.stop().await;
}

#[tokio::test]
async fn a_prune_job_ends_in_the_store_and_its_model_can_be_served_and_removed() {
    let running = start(|_| {}).await;
    let handle = &running.handle;
    let query = PruneQuery { ratio: Some(0.25), calibration_tokens: Some(1024), ..PruneQuery::default() };
    let id = handle.start_prune(query.clone()).unwrap();
    let (state, n_progress) = last_state(handle.job_events(id, None).unwrap()).await;
    let job = handle.job(id).unwrap();
    assert_eq!(state, JobState::Succeeded, "{job:?}");
    assert!(6 <= n_progress, "{n_progress} reports for six layers");
    assert!(job.plan.is_some() && job.report.is_some());
    let pruned = job.model.unwrap();
    let models = handle.models().unwrap();
    let kinds: Vec<_> = models.iter().map(|model| (model.kind, model.active)).collect();
    assert_eq!(kinds, [(ModelKind::Base, true), (ModelKind::Pruned, false)]);
    assert_eq!(models[1].id, pruned);
    assert!((models[1].ratio.unwrap() - 0.25).abs() < 0.05);
    assert!(models[1].layer_params < models[0].layer_params);
    let base = models[0].id.clone();

    // Followers of the readiness see that the model changes.
    let mut readiness = handle.watch_readiness();
    readiness.mark_unchanged();
    assert!(handle.activate_model(&pruned).await.unwrap().active);
    assert!(readiness.has_changed().unwrap());
    assert_eq!(handle.readiness(), Readiness::Ready);
    assert_eq!(handle.status().model.unwrap().model.id, pruned);
    assert!(matches!(handle.delete_model(&pruned), Err(ServiceError::Conflict { .. })));
    assert!(matches!(handle.delete_model(&base), Err(ServiceError::Conflict { .. })));
    let reply = read(handle.complete(&endless(3)).unwrap()).await;
    assert!(matches!(reply.end, GenerationEvent::Finished { .. }));

    // The same job again finds its result.
    readiness.mark_unchanged();
    let again = handle.start_prune(PruneQuery { activate: true, ..query }).unwrap();
    assert_eq!(last_state(handle.job_events(again, None).unwrap()).await, (JobState::Succeeded, 0));
    assert!(readiness.has_changed().unwrap(), "a job that serves its result says so");
    assert_eq!(handle.job(again).unwrap().model.unwrap(), pruned);

    handle.activate_model(&base).await.unwrap();
    handle.delete_model(&pruned).unwrap();
    assert!(matches!(handle.delete_model(&pruned), Err(ServiceError::ModelNotFound { .. })));
    assert!(matches!(handle.activate_model(&pruned).await, Err(ServiceError::ModelNotFound { .. })));
    assert_eq!(handle.models().unwrap().len(), 1);
    let left = std::fs::read_dir(running.dir.path().join("state/jobs")).unwrap();
    assert!(left.map(|entry| entry.unwrap().path()).all(|path| path.is_file()), "work folders are gone");
    running.stop().await;
}

#[tokio::test]
async fn requests_are_answered_while_a_job_is_at_work_and_it_can_be_cancelled() {
    let running = start(|_| {}).await;
    let handle = &running.handle;
    let query = PruneQuery { ratio: Some(0.3), calibration_tokens: Some(65_536), ..PruneQuery::default() };
    let text = "Each of the old trees had a name, and each name a story. ".repeat(12_000);
    let id = handle.start_prune(PruneQuery { calibration_text: Some(text), ..query }).unwrap();
    let mut events = handle.job_events(id, None).unwrap();
    while let Some(event) = events.next().await {
        if matches!(event.kind, JobEventKind::Progress(_)) {
            break;
        }
    }
    let reply = read(handle.complete(&endless(3)).unwrap()).await;
    assert!(matches!(reply.end, GenerationEvent::Finished { .. }));
    assert_eq!(handle.job(id).unwrap().state, JobState::Running, "the answer did not wait for the job");
    handle.cancel_job(id).unwrap();
    let (state, _) = last_state(events).await;
    assert_eq!(state, JobState::Cancelled);
    assert_eq!(handle.models().unwrap().len(), 1);
    let reply = read(handle.complete(&endless(3)).unwrap()).await;
    assert!(matches!(reply.end, GenerationEvent::Finished { .. }));
    running.stop().await;
}

#[tokio::test]
async fn a_failed_job_leaves_the_service_answering() {
    let running = start(|_| {}).await;
    let handle = &running.handle;
    let query =
        PruneQuery { ratio: Some(0.2), calibration_text: Some("too short".into()), ..PruneQuery::default() };
    let id = handle.start_prune(query).unwrap();
    assert_eq!(last_state(handle.job_events(id, None).unwrap()).await.0, JobState::Failed);
    assert!(handle.job(id).unwrap().error.unwrap().contains("tokens"));
    assert!(matches!(
        read(handle.complete(&endless(2)).unwrap()).await.end,
        GenerationEvent::Finished { .. }
    ));
    running.stop().await;
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_not_activated_and_the_old_one_goes_on() {
    // So deep and with so long a cache that pruning, which holds one layer at a time and no cache, needs far less
    // than serving, whatever this process takes before it begins.
    const CONTEXT_LEN: u32 = 16_384;
    let tiny = tiny();
    let deep = TinyModel { layers: vec![tiny.layers[0]; 48], context_length: CONTEXT_LEN, ..tiny };
    let file = tempfile::tempdir().unwrap();
    let settings = PlanSettings { context_len: Some(CONTEXT_LEN as usize), ..PlanSettings::default() };
    let plan = secateur_service::ops::plan(&deep.write_to(file.path()), "512MiB", &settings);
    // Enough for the pruned model, not for the base.
    let budget = plan.unwrap().plan.base_footprint.total_bytes - 100_000;
    let running = start_with(&deep, |options| {
        options.memory_budget = budget.to_string();
        options.prune.plan = settings.clone();
        options.prune.calibration.tokens = Some(1024);
    })
    .await;
    let handle = &running.handle;
    let models = handle.models().unwrap();
    let active = models.iter().find(|model| model.active).unwrap();
    assert_eq!(active.kind, ModelKind::Pruned);
    let result = handle.activate_model(&models[0].id).await;
    assert!(matches!(result, Err(ServiceError::Refused { .. })), "{result:?}");
    assert_eq!(handle.status().model.unwrap().model.id, active.id);
    assert!(matches!(
        read(handle.complete(&endless(2)).unwrap()).await.end,
        GenerationEvent::Finished { .. }
    ));
    running.stop().await;
}

#[tokio::test]
async fn the_end_cancels_what_does_not_finish_and_refuses_what_comes_late() {
    let running = start(|_| {}).await;
    let handle = running.handle.clone();
    let mut stream = handle.complete(&endless(240)).unwrap();
    assert!(matches!(stream.next().await, Some(GenerationEvent::Started { .. })));
    handle.shutdown(Duration::ZERO).await;
    let end = read(stream).await.end;
    assert!(
        matches!(end, GenerationEvent::Failed(ServiceError::ShuttingDown) | GenerationEvent::Finished { .. }),
        "{end:?}"
    );
    assert!(matches!(handle.complete(&endless(1)), Err(ServiceError::ShuttingDown)));
    assert!(matches!(handle.start_prune(PruneQuery::default()), Err(ServiceError::ShuttingDown)));
    assert_eq!(handle.readiness(), Readiness::ShuttingDown);
}

#[test]
fn what_cannot_work_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let base = || options(&dir, &tiny());
    let broken = dir.path().join("broken.gguf");
    std::fs::write(&broken, b"GGUF").unwrap();
    let start = |options: ServiceOptions| Service::start(options).unwrap_err();
    let error = start(ServiceOptions { memory_budget: "none".into(), ..base() });
    assert!(matches!(error, ServiceError::Invalid { .. }), "{error}");
    let error = start(ServiceOptions { memory_budget: "1MiB".into(), ..base() });
    assert!(matches!(error, ServiceError::Refused { smallest_budget_bytes: Some(_), .. }), "{error}");
    let error = start(ServiceOptions { model: Some("absent.gguf".into()), ..base() });
    assert!(matches!(error, ServiceError::Io { .. }), "{error}");
    let error = start(ServiceOptions { model: Some(broken.to_str().unwrap().into()), ..base() });
    assert!(matches!(error, ServiceError::Data { .. }), "{error}");
    let error = start(ServiceOptions { n_threads: Some(0), ..base() });
    assert!(matches!(error, ServiceError::Invalid { .. }), "{error}");
}

#[tokio::test]
async fn short_requests_do_not_wait_for_long_ones() {
    let running = start_with(&patient(), |_| {}).await;
    let handle = &running.handle;
    let mut long = handle.complete(&endless(AGES)).unwrap();
    assert!(matches!(long.next().await, Some(GenerationEvent::Started { .. })));
    let short: Vec<EventStream> = (0..3).map(|_| handle.complete(&endless(5)).unwrap()).collect();
    for stream in short {
        assert!(matches!(read(stream).await.end, GenerationEvent::Finished { .. }));
    }
    drop(long);
    until(|| handle.metrics().requests_cancelled_total == 1).await;
    running.stop().await;
}

#[tokio::test]
async fn requests_that_take_turns_say_what_they_say_alone_even_when_places_run_out() {
    // Four answers of 100 tokens want more places than there are.
    let running = start(|options| options.prune.plan.context_len = Some(128)).await;
    let handle = &running.handle;
    let request = |seed: u64| {
        let mut request = endless(100);
        request.params.sampling.temperature = 0.7;
        request.params.sampling.seed = seed;
        request.prompt = Prompt::Text(format!("{seed} Once upon"));
        request
    };
    let mut alone = Vec::new();
    for seed in 0..4 {
        alone.push(read(handle.complete(&request(seed)).unwrap()).await.text);
    }
    let streams: Vec<EventStream> = (0..4).map(|seed| handle.complete(&request(seed)).unwrap()).collect();
    let mut together = Vec::new();
    for stream in streams {
        let reply = read(stream).await;
        assert!(matches!(reply.end, GenerationEvent::Finished { .. }), "{:?}", reply.end);
        together.push(reply.text);
    }
    // Tokens read again come in other batches, whose sums may round otherwise: the first divergence, if any, is late.
    for (alone, together) in alone.iter().zip(&together) {
        let common = alone.bytes().zip(together.bytes()).take_while(|(a, b)| a == b).count();
        assert!(20 <= common, "{alone:?} {together:?}");
    }
    assert_eq!(alone[0], together[0], "the oldest keeps its cache");
    running.stop().await;
}

#[tokio::test]
async fn answers_follow_schemas_and_bad_schemas_are_the_clients_fault() {
    use secateur_service::api::Grammar;
    let running = start(|_| {}).await;
    let handle = &running.handle;
    let schema = serde_json::json!({
        "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false,
    });
    let params = GenerationParams {
        max_tokens: Some(60),
        grammar: Some(Grammar::JsonSchema(schema)),
        ..GenerationParams::default()
    };
    let message = ChatMessage { role: "user".into(), content: "Well?".into(), ..ChatMessage::default() };
    let chat = ChatRequest { messages: vec![message], params };
    let text = read(handle.chat(&chat).unwrap()).await.text;
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(value["ok"].is_boolean() && value.as_object().unwrap().len() == 1, "{text}");
    let mut bad = chat.clone();
    bad.params.grammar = Some(Grammar::Lark("start: nothing".into()));
    assert!(matches!(handle.chat(&bad), Err(ServiceError::Invalid { param, .. }) if param == "grammar"));
    running.stop().await;
}

#[tokio::test]
async fn text_that_cannot_fit_is_refused_before_it_is_tokenised() {
    let running = start(|options| options.prune.plan.context_len = Some(64)).await;
    let long = Prompt::Text("word ".repeat(200_000));
    let request = CompletionRequest { prompt: long, ..endless(1) };
    let error = running.handle.complete(&request).unwrap_err();
    assert!(
        matches!(error, ServiceError::PromptTooLong { context_len: 64, prompt_tokens } if 64 < prompt_tokens)
    );
    running.stop().await;
}

#[tokio::test]
async fn a_swap_under_load_fails_no_request() {
    let running = start(|_| {}).await;
    let handle = &running.handle;
    // A second model: the same one, pruned.
    let job = handle
        .start_prune(PruneQuery { ratio: Some(0.2), calibration_tokens: Some(1024), ..PruneQuery::default() })
        .unwrap();
    assert_eq!(last_state(handle.job_events(job, None).unwrap()).await.0, JobState::Succeeded);
    let ids: Vec<String> = handle.models().unwrap().into_iter().map(|model| model.id).collect();
    assert_eq!(ids.len(), 2);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (handle, stop) = (handle.clone(), stop.clone());
            tokio::spawn(async move {
                let mut n_done = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    handle.swapped().await;
                    let stream = match handle.complete(&endless(6)) {
                        Ok(stream) => stream,
                        Err(ServiceError::NotReady { .. }) if handle.is_swapping() => continue,
                        Err(error) => panic!("{error}"),
                    };
                    let reply = read(stream).await;
                    assert!(matches!(reply.end, GenerationEvent::Finished { .. }), "{:?}", reply.end);
                    n_done += 1;
                }
                n_done
            })
        })
        .collect();
    for swap in 0..6 {
        handle.activate_model(&ids[swap % 2]).await.unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        assert!(0 < client.await.unwrap());
    }
    running.stop().await;
}

#[tokio::test]
async fn a_job_that_a_stop_interrupts_goes_on_after_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let text = "The river runs past the old mill and on to the sea. ".repeat(4000);
    let query = PruneQuery {
        ratio: Some(0.3),
        calibration_tokens: Some(32_768),
        calibration_text: Some(text),
        ..PruneQuery::default()
    };
    let service = Service::start(options(&dir, &tiny())).unwrap();
    let handle = service.handle();
    handle.watch_readiness().wait_for(Readiness::is_ready).await.unwrap();
    let job = handle.start_prune(query.clone()).unwrap();
    let waiting = handle.start_prune(PruneQuery { ratio: Some(0.2), ..query.clone() }).unwrap();
    let unwanted = handle.start_prune(query.clone()).unwrap();
    let mut events = handle.job_events(job, None).unwrap();
    let mut seen = 0;
    while let Some(event) = events.next().await {
        seen = event.id;
        if matches!(event.kind, JobEventKind::Progress(_)) {
            break;
        }
    }
    handle.cancel_job(unwanted).unwrap();
    handle.shutdown(Duration::ZERO).await;
    service.join();
    assert_eq!(handle.job(job).unwrap().state, JobState::Cancelled);

    let service = Service::start(options(&dir, &tiny())).unwrap();
    let handle = service.handle();
    handle.watch_readiness().wait_for(Readiness::is_ready).await.unwrap();
    let ids: Vec<_> = handle.jobs().iter().map(|job| job.id).collect();
    assert_eq!(ids, [job, waiting], "under the numbers their clients know");
    let mut events = handle.job_events(job, Some(seen)).unwrap();
    let next = events.next().await.unwrap();
    assert!(seen < next.id && matches!(next.kind, JobEventKind::State(_)), "{next:?}");
    for id in ids {
        assert_eq!(last_state(handle.job_events(id, None).unwrap()).await.0, JobState::Succeeded);
    }
    handle.shutdown(Duration::from_secs(5)).await;
    service.join();
    // What has ended is not done again.
    let service = Service::start(options(&dir, &tiny())).unwrap();
    let handle = service.handle();
    handle.watch_readiness().wait_for(Readiness::is_ready).await.unwrap();
    assert!(handle.jobs().is_empty());
    handle.shutdown(Duration::from_secs(5)).await;
    service.join();
}

/// Text and counts of guesses of four requests at the same time, and of one more with what they left.
async fn answers(running: &Running) -> (Vec<String>, Vec<Option<(u64, u64)>>) {
    let prompts = ["Once upon a time", "Once upon a time", "The quick brown fox", "ab"];
    let ask = |prompt: &str| {
        let request = CompletionRequest { prompt: Prompt::Text(prompt.into()), ..endless(40) };
        running.handle.complete(&request).unwrap()
    };
    let streams: Vec<_> = prompts.iter().map(|prompt| ask(prompt)).collect();
    let (mut texts, mut counts) = (Vec::new(), Vec::new());
    for stream in streams {
        let reply = read(stream).await;
        let GenerationEvent::Finished { drafted, .. } = reply.end else { panic!("{:?}", reply.end) };
        texts.push(reply.text);
        counts.push(drafted.map(|counts| (counts.guessed, counts.accepted)));
    }
    texts.push(read(ask("Once upon a time there")).await.text);
    (texts, counts)
}

#[tokio::test]
async fn a_draft_changes_the_speed_of_answers_and_nothing_else() {
    // Sure enough of something to guess.
    let sure = TinyModel { logit_scale: 8.0, ..tiny() };
    let alone = start_with(&sure, |_| {}).await;
    let (want, counts) = answers(&alone).await;
    assert_eq!(counts, [None; 4]);
    assert_eq!(alone.handle.status().model.unwrap().draft, None);
    alone.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let narrow = TinyLayer { heads: 4, kv_heads: 2, intermediate_size: 64 };
    for (name, draft) in
        [("the model", sure.clone()), ("narrow", TinyModel { layers: vec![narrow; 6], ..sure.clone() })]
    {
        let path = draft.write_to(dir.path());
        let running =
            start_with(&sure, |options| options.draft = Some(path.to_str().unwrap().to_owned())).await;
        let view = running.handle.status().model.unwrap().draft.unwrap();
        assert_eq!((view.unused, 0 < view.bytes), (None, true), "{name}");
        let (texts, counts) = answers(&running).await;
        assert_eq!(texts, want, "{name}");
        let (guessed, accepted) = counts.into_iter().flatten().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        assert!(accepted <= guessed, "{name}");
        assert!(name != "the model" || 60 < accepted, "{name}: {accepted} of {guessed}");
        let metrics = running.handle.metrics();
        assert!(guessed <= metrics.draft_tokens_total && accepted <= metrics.draft_accepted_tokens_total);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_draft_that_cannot_be_used_is_refused_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let other = tiny().write_to(dir.path());
    let mut bytes = std::fs::read(&other).unwrap();
    let at = bytes.windows(13).position(|text| text == b"<|endoftext|>").unwrap();
    bytes[at + 2] = b'E';
    std::fs::write(&other, bytes).unwrap();
    let running = start(|options| options.draft = Some(other.to_str().unwrap().to_owned())).await;
    let why = running.handle.status().model.unwrap().draft.unwrap().unused.unwrap();
    assert!(why.contains("vocabulary"), "{why}");
    let request = endless(3);
    assert!(matches!(
        read(running.handle.complete(&request).unwrap()).await.end,
        GenerationEvent::Finished { .. }
    ));
    running.stop().await;

    // The model fits alone, not with a second one beside it.
    let dir = tempfile::tempdir().unwrap();
    let draft = tiny().write_to(dir.path());
    let needed = {
        let running = start(|_| {}).await;
        let needed = running.handle.status().model.unwrap().plan.unwrap().footprint.total_bytes;
        running.stop().await;
        needed
    };
    let running = start(|options| {
        options.draft = Some(draft.to_str().unwrap().to_owned());
        options.memory_budget = (needed + 4096).to_string();
    })
    .await;
    let view = running.handle.status().model.unwrap().draft.unwrap();
    assert!(view.unused.unwrap().contains("memory budget"));
    running.stop().await;

    for (draft, precision, want) in
        [("missing.gguf", "int8", "missing.gguf"), (draft.to_str().unwrap(), "f32", "int8")]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(&dir, &tiny());
        options.draft = Some(draft.to_owned());
        options.precision = Some(precision.to_owned());
        let error = Service::start(options).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}
