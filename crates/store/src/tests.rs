//! Entries survive being killed, failing and being tampered with at every step.

use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

fn draft(key: &str) -> Draft {
    Draft {
        key: key.to_owned(),
        generator: "secateur test".into(),
        name: "Tiny".into(),
        created_unix_s: 1_700_000_000,
        source: SourceRecord { digest: "b".repeat(64), name: "Tiny".into(), bytes: 7 },
        plan: PlanRecord {
            action: "prune".into(),
            policy: "quality".into(),
            ratio: 0.2,
            dtype: "keep".into(),
            table_dtype: "keep".into(),
            layers_to_remove: vec![],
            layers: vec![LayerRecord {
                num_attention_heads: 4,
                num_key_value_heads: 2,
                intermediate_size: 96,
            }],
            context_len: 256,
            kv_dtype: "f16".into(),
            budget_bytes: Some(1 << 20),
            base_footprint: FootprintRecord::default(),
            footprint: FootprintRecord::default(),
            predicted_perplexity_factor: 1.2,
            reason: "a test".into(),
        },
        method: "comp".into(),
        settings: BTreeMap::from([("window".to_owned(), 512.into())]),
        seed: 3,
        calibration: CalibrationRecord { digest: "c".repeat(64), tokens: 1024 },
        report: serde_json::json!({"layers": [1, 2]}),
    }
}

fn add(store: &Store, key: &str, content: &[u8]) -> Result<Added, StoreError> {
    let fill = |path: &Path| fs::write(path, content).map_err(|source| io_error(path, source));
    store.add(content.len() as u64, fill, || draft(key))
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), source }
}

fn ids(store: &Store) -> Vec<String> {
    let listing = store.list().unwrap();
    assert!(listing.damaged.is_empty(), "{:?}", listing.damaged);
    let check = |entry: &Entry| store::check_digests(entry).unwrap();
    listing.entries.iter().inspect(|entry| check(entry)).map(|entry| entry.id.to_string()).collect()
}

fn n_staged(dir: &TempDir) -> usize {
    fs::read_dir(dir.path().join("staging")).unwrap().count()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Fail,
    Crash,
}

/// Lets `n_before` steps pass, then stops; remembers what it saw.
struct StopAt {
    n_before: usize,
    how: How,
    n_seen: AtomicUsize,
    seen: Mutex<Vec<Step>>,
}

impl StopAt {
    fn new(n_before: usize, how: How) -> Arc<Self> {
        Arc::new(Self { n_before, how, n_seen: AtomicUsize::new(0), seen: Mutex::new(Vec::new()) })
    }
}

impl Hook for StopAt {
    fn before(&self, step: Step, _path: &Path) -> Outcome {
        self.seen.lock().unwrap().push(step);
        if self.n_seen.fetch_add(1, Ordering::Relaxed) < self.n_before {
            return Outcome::Continue;
        }
        match self.how {
            How::Fail => Outcome::Fail(io::Error::from(io::ErrorKind::StorageFull)),
            How::Crash => Outcome::Crash,
        }
    }
}

#[test]
fn an_entry_is_found_by_its_key_and_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let entry = add(&store, "k1", b"model one").unwrap().into_entry();
    assert_eq!(entry.id.as_str(), blake3::hash(b"model one").to_hex().as_str());
    assert_eq!(fs::read(entry.model_path()).unwrap(), b"model one");
    assert_eq!(store.find("k1").unwrap().unwrap().id, entry.id);
    assert!(store.find("k2").unwrap().is_none());
    let again = store.get(&entry.id).unwrap();
    assert_eq!(again.manifest, entry.manifest);
    assert_eq!(again.manifest.plan, draft("k1").plan);
    assert_eq!(n_staged(&dir), 0);
    let mode = |path: PathBuf| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(dir.path().join("models")), 0o700);
}

#[test]
fn the_same_bytes_under_another_key_are_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let first = add(&store, "k2", b"same").unwrap();
    assert!(matches!(first, Added::New(_)));
    let second = add(&store, "k1", b"same").unwrap();
    assert!(matches!(second, Added::Known(_)));
    assert_eq!(ids(&store).len(), 1);
    let entry = store.find("k1").unwrap().unwrap();
    assert_eq!(entry.manifest.keys, ["k1", "k2"]);
    assert_eq!(store.find("k2").unwrap().unwrap().id, entry.id);
    assert_eq!(n_staged(&dir), 0);
}

#[test]
fn a_stop_at_any_step_of_adding_leaves_the_old_set_or_the_new_one() {
    let mut n_steps = 0;
    for how in [How::Fail, How::Crash] {
        for n_before in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let old =
                add(&Store::open(dir.path()).unwrap(), "old", b"old").unwrap().into_entry().id.to_string();
            let new = blake3::hash(b"new").to_hex().to_string();
            let hook = StopAt::new(n_before, how);
            let store = Store::open_with_hook(dir.path(), hook.clone()).unwrap();
            let result = add(&store, "new", b"new");
            let last = *hook.seen.lock().unwrap().last().unwrap();
            // The next process sees a whole set, with the new entry only once it was renamed.
            let store = Store::open(dir.path()).unwrap();
            let have = ids(&store);
            let published = result.is_ok() || last == Step::SyncModels;
            let mut want = vec![old.clone()];
            want.extend(published.then(|| new.clone()));
            want.sort();
            assert_eq!(have, want, "{how:?} at {last:?}");
            let is_orphaned = how == How::Crash && !published && last != Step::CreateStaging;
            assert_eq!(n_staged(&dir), usize::from(is_orphaned), "{how:?} at {last:?}");
            assert_eq!(store.collect_garbage().unwrap().folders, usize::from(is_orphaned));
            assert_eq!(n_staged(&dir), 0);
            assert!(store.find("old").unwrap().is_some());
            // And the work can be done again.
            add(&store, "new", b"new").unwrap();
            assert_eq!(ids(&store).len(), 2);
            if result.is_ok() {
                n_steps += n_before;
                break;
            }
        }
    }
    assert!(16 <= n_steps, "only {n_steps} stops were tried");
}

#[test]
fn a_stop_at_any_step_of_removing_leaves_the_entry_or_nothing() {
    for how in [How::Fail, How::Crash] {
        for n_before in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            let id = add(&store, "k", b"gone").unwrap().into_entry().id;
            let hook = StopAt::new(n_before, how);
            let result = Store::open_with_hook(dir.path(), hook.clone()).unwrap().remove(&id);
            let last = *hook.seen.lock().unwrap().last().unwrap();
            let removed = result.is_ok() || last != Step::Unpublish;
            assert_eq!(ids(&store).is_empty(), removed, "{how:?} at {last:?}");
            store.collect_garbage().unwrap();
            assert_eq!(n_staged(&dir), 0);
            if result.is_ok() {
                break;
            }
        }
    }
}

#[test]
fn a_failing_writer_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let full = |path: &Path| {
        fs::write(path, b"half").unwrap();
        Err(io_error(path, io::ErrorKind::StorageFull.into()))
    };
    let result = store.add(4, full, || draft("k"));
    assert!(matches!(result, Err(StoreError::Io { .. })));
    assert!(ids(&store).is_empty());
    assert_eq!(n_staged(&dir), 0);
    let result = store.add::<StoreError>(u64::MAX / 2, |_| panic!("must not be called"), || draft("k"));
    assert!(matches!(result, Err(StoreError::NoSpace { .. })));
}

#[test]
fn garbage_of_a_living_process_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let fill = |path: &Path| {
        fs::write(path, b"slow").unwrap();
        assert_eq!(store.collect_garbage().unwrap(), Garbage::default());
        assert!(path.exists());
        Ok::<_, StoreError>(())
    };
    store.add(4, fill, || draft("k")).unwrap();
    assert_eq!(ids(&store).len(), 1);
}

#[test]
fn tampering_is_found() {
    type Tamper = fn(&Entry);
    let cases: [(&str, Tamper, &str); 7] = [
        ("byte flipped", |e| fs::write(e.model_path(), b"modem").unwrap(), "digest"),
        ("truncated", |e| fs::write(e.model_path(), b"mode").unwrap(), "size"),
        ("model gone", |e| fs::remove_file(e.model_path()).unwrap(), "No such file"),
        ("manifest gone", |e| fs::remove_file(e.path.join("manifest.json")).unwrap(), "No such file"),
        ("manifest torn", |e| fs::write(e.path.join("manifest.json"), b"{\"format_v").unwrap(), "EOF"),
        (
            "newer version",
            |e| fs::write(e.path.join("manifest.json"), b"{\"format_version\": 99}").unwrap(),
            "version 99",
        ),
        (
            "path in a file name",
            |e| {
                let mut manifest = e.manifest.clone();
                manifest.files[0].name = "../../secret".into();
                fs::write(e.path.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
            },
            "not a file name",
        ),
    ];
    for (name, tamper, want) in cases {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let entry = add(&store, "k", b"model").unwrap().into_entry();
        tamper(&entry);
        let error = store.verify(&entry.id).unwrap_err().to_string();
        assert!(error.contains(want), "{name}: {error}");
        // Making it again heals it.
        add(&store, "k", b"model").unwrap();
        assert_eq!(ids(&store), [entry.id.as_str()], "{name}");
        assert_eq!(n_staged(&dir), 0, "{name}");
        store.remove(&entry.id).unwrap();
        assert!(ids(&store).is_empty(), "{name}");
    }
}

#[test]
fn a_whole_entry_must_also_be_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let model = secateur_test_support::TinyModel::default().to_bytes();
    let entry = add(&store, "model", &model).unwrap().into_entry();
    store.verify(&entry.id).unwrap();
    let entry = add(&store, "text", b"not a model").unwrap().into_entry();
    assert!(matches!(store.verify(&entry.id), Err(StoreError::Model { .. })));
}

#[test]
fn what_is_served_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let id = add(&store, "k", b"served").unwrap().into_entry().id;
    let guard = store.hold(&id).unwrap();
    assert!(matches!(store.remove(&id), Err(StoreError::InUse { .. })));
    drop(guard);
    store.remove(&id).unwrap();
    assert!(matches!(store.remove(&id), Err(StoreError::NotFound { .. })));
    assert!(matches!(store.hold(&id), Err(StoreError::NotFound { .. })));
    assert!(matches!(store.get(&id), Err(StoreError::NotFound { .. })));
}

#[test]
fn strangers_among_the_entries_are_listed_as_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    add(&store, "k", b"good").unwrap();
    fs::create_dir(dir.path().join("models/lost+found")).unwrap();
    fs::create_dir(dir.path().join("models").join("a".repeat(64))).unwrap();
    let listing = store.list().unwrap();
    assert_eq!((listing.entries.len(), listing.damaged.len()), (1, 2));
    assert!(store.find("k").unwrap().is_some());
}
