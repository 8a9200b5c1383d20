//! API keys from a file.

use crate::failure::{CONFIG, Failure};
use secateur_http_api::ApiKeys;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Shortest key that is accepted: what can be guessed is no key.
const MIN_KEY_BYTES: usize = 16;
/// Largest file of keys.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads keys, one a line: `user:KEY` may ask, `admin:KEY` and `KEY` may do everything. Empty lines and lines that
/// begin with `#` are left out.
/// # Errors
/// [`Failure`] when the file cannot be read, is open to others, or holds no usable key.
pub(crate) fn read_keys(path: &Path) -> Result<ApiKeys, Failure> {
    let wrong = |message: String| Failure::new(CONFIG, "config", format!("{}: {message}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
    if metadata.permissions().mode() & 0o027 != 0 {
        return Err(wrong("other users may read the keys; run `chmod 600` on the file".to_owned()));
    }
    if MAX_FILE_BYTES < metadata.len() {
        return Err(wrong(format!("{} bytes are no file of keys", metadata.len())));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let keys = parse_keys(&text).map_err(wrong)?;
    if keys.is_open() {
        return Err(wrong("holds no key".to_owned()));
    }
    Ok(keys)
}

/// Reads a file that may hold no key, as the package installs it.
/// # Errors
/// As [`read_keys`], but for that.
pub(crate) fn read_credential(path: &Path) -> Result<ApiKeys, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(CONFIG, "config", format!("{}: {error}", path.display())))?;
    parse_keys(&text)
        .map_err(|message| Failure::new(CONFIG, "config", format!("{}: {message}", path.display())))
}

fn parse_keys(text: &str) -> Result<ApiKeys, String> {
    let mut keys = ApiKeys::default();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (scope, key) = match line.split_once(':') {
            Some((scope @ ("user" | "admin"), key)) => (scope, key.trim()),
            _ => ("admin", line),
        };
        if key.len() < MIN_KEY_BYTES {
            return Err(format!("line {}: a key needs at least {MIN_KEY_BYTES} characters", number + 1));
        }
        let list = if scope == "user" { &mut keys.user } else { &mut keys.admin };
        list.push(key.to_owned());
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_scopes() {
        let text = "# ours\n\nuser:0123456789abcdef\nadmin: 0123456789abcdeF \n0123456789:abcdefg\n";
        let keys = parse_keys(text).unwrap();
        assert_eq!(keys.user, ["0123456789abcdef"]);
        assert_eq!(keys.admin, ["0123456789abcdeF", "0123456789:abcdefg"]);
        assert!(parse_keys("short").unwrap_err().contains("line 1"));
    }

    #[test]
    fn files_that_others_read_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        let set = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        set(0o644);
        assert!(format!("{:?}", read_keys(&path).unwrap_err()).contains("chmod 600"));
        set(0o600);
        assert!(read_keys(&path).is_ok());
        std::fs::write(&path, "# none\n").unwrap();
        assert!(format!("{:?}", read_keys(&path).unwrap_err()).contains("no key"));
    }
}
