//! Confines the process to its folders, where the kernel has landlock.
//!
//! Afterwards it can write in its state folder and temporary files, read its models and what it measures the device
//! by, and neither connect to anything nor listen on another port. A fault in a parser of untrusted bytes then
//! reaches no file of the user and no other machine.

use crate::settings::Settings;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Rules newer than this are not known here; older kernels keep those they know.
const NEWEST: ABI = ABI::V6;

/// What is read: measurements of the device, the program's own libraries, configuration.
const READABLE: [&str; 9] =
    ["/proc", "/sys", "/etc", "/usr", "/lib", "/lib64", "/run/systemd", "/dev/urandom", "/dev/null"];

/// How far the process is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confinement {
    Full,
    Partial,
    None,
}

/// Confines the calling thread and all it starts from now on. `models` are the files or folders to serve.
/// # Errors
/// When the kernel has landlock and refuses.
pub(crate) fn confine<'a>(
    settings: &Settings,
    models: impl IntoIterator<Item = &'a Path>,
) -> Result<Confinement, RulesetError> {
    let mut readable: Vec<PathBuf> = READABLE.iter().map(PathBuf::from).collect();
    for model in models {
        readable.extend(folders_of(model));
        readable.extend(checkpoint_places(model));
    }
    readable.extend(settings.calibration.clone());
    readable.extend(settings.api_key_file.clone());
    readable.extend(Settings::credential().and_then(|path| path.parent().map(Path::to_owned)));
    readable.extend(std::env::var_os("HOME").map(|home| Path::new(&home).join(".config/secateur")));
    // Weights that are stored anew while a model is opened go to the large one of the two.
    let writable = [settings.state_dir.clone(), std::env::temp_dir(), PathBuf::from("/var/tmp")];
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(rules(&readable, AccessFs::from_read(NEWEST)))?
        .add_rules(rules(&writable, AccessFs::from_all(NEWEST) & !AccessFs::Execute))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Confinement::Full,
        RulesetStatus::PartiallyEnforced => Confinement::Partial,
        RulesetStatus::NotEnforced => Confinement::None,
    })
}

/// The folders that hold the files of a model: a file may be replaced by renaming, so its folder is what is allowed. Model
/// caches are full of symbolic links, so those where they lead are allowed too.
fn folders_of(model: &Path) -> BTreeSet<PathBuf> {
    let mut files = vec![model.to_owned()];
    files.extend(model.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()));
    let linked: Vec<_> = files.iter().filter_map(|path| path.canonicalize().ok()).collect();
    let folder = |path: &PathBuf| {
        let dir = path.parent()?;
        Some(if dir == Path::new("") { PathBuf::from(".") } else { dir.to_owned() })
    };
    files.iter().chain(&linked).filter_map(folder).collect()
}

/// Where the other files of a checkpoint are, when one of them is named: beside it, and for the graphs of repositories
/// in the folder above or below; links lead to single files.
fn checkpoint_places(model: &Path) -> Vec<PathBuf> {
    let beside = if model.is_dir() { Some(model) } else { model.parent() };
    let Some(beside) = beside.and_then(|dir| dir.canonicalize().ok()) else { return Vec::new() };
    let mut folders = vec![beside.clone()];
    if beside.file_name().is_some_and(|name| name == "onnx") {
        folders.extend(beside.parent().map(Path::to_owned));
    }
    let in_onnx = beside.join("onnx");
    let entries = folders.clone().into_iter().chain(in_onnx.is_dir().then_some(in_onnx));
    let entries = entries.filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let linked = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    folders.extend(linked.filter_map(|link| link.path().canonicalize().ok()).filter(|path| path.is_file()));
    folders
}

/// Rules for the paths that exist.
fn rules(
    paths: &[PathBuf],
    access: landlock::BitFlags<AccessFs>,
) -> impl Iterator<Item = Result<PathBeneath<PathFd>, RulesetError>> {
    let mut rules = Vec::new();
    for path in paths {
        let Ok(fd) = PathFd::new(path) else { continue };
        // Rules for a file may not speak of folders.
        let access = if path.is_file() { access & AccessFs::from_file(NEWEST) } else { access };
        rules.push(Ok(PathBeneath::new(fd, access)));
    }
    rules.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_confined_thread_reaches_its_folders_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        fs::create_dir(&state_dir).unwrap();
        let settings = Settings { state_dir: state_dir.clone(), ..Settings::default() };
        let linked = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/main.rs");
        let link = dir.path().join("m.gguf");
        std::os::unix::fs::symlink(&linked, &link).unwrap();
        // Only this thread is confined, not those of other tests.
        let thread = std::thread::spawn(move || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let outside = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
            assert!(fs::read(&outside).is_ok());
            let how = confine(&settings, [link.as_path()]).unwrap();
            if how == Confinement::None {
                eprintln!("skipped: this kernel has no landlock");
                return;
            }
            assert_eq!(fs::read(&outside).unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert!(fs::read("/proc/meminfo").is_ok());
            assert!(fs::read(&link).is_ok(), "a link to a model is followed");
            fs::write(state_dir.join("x"), "x").unwrap();
            fs::rename(state_dir.join("x"), state_dir.join("y")).unwrap();
            if how == Confinement::Full {
                let error = TcpStream::connect(address).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::PermissionDenied, "nothing is connected to");
                assert!(TcpListener::bind("127.0.0.1:0").is_err(), "no other port is opened");
            }
        });
        thread.join().unwrap();
    }
}
