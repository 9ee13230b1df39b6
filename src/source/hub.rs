//! The Hugging Face hub.

use std::ops::Range;
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClientBuilder, HFClientSync, HFRepositorySync, RepoTypeModel, split_id};

use super::transport::{Hub, HubFile, HubSnapshot};

/// How long the hub may take to answer a question. Without a network this is how long it takes
/// to find out, so it is short.
const ANSWER: Duration = Duration::from_secs(10);

/// How long a piece of a file may take.
const PIECE: Duration = Duration::from_secs(90);

/// The hub that `HF_ENDPOINT` names, by default Hugging Face's; with the token of `HF_TOKEN` or
/// of the user's login, if there is one.
#[derive(Debug, Default)]
pub(crate) struct HuggingFaceHub {
    /// Another hub than that of the environment.
    endpoint: Option<String>,
    client: OnceLock<HFClientSync>,
}

impl Hub for HuggingFaceHub {
    fn snapshot(&self, repository: &str, revision: &str) -> Result<HubSnapshot, String> {
        let (repository, revision) = (self.open(repository)?, revision.to_owned());
        within(ANSWER, move || {
            let information = repository.info().revision(&revision).send().map_err(text)?;
            let commit = information.sha.ok_or("the hub does not say which commit this is")?;
            let entries =
                repository.list_tree().revision(&commit).recursive(true).send().map_err(text)?;
            let files = entries.into_iter().filter_map(|entry| match entry {
                RepoTreeEntry::File { size, path, .. } => Some(HubFile { path, size }),
                RepoTreeEntry::Directory { .. } => None,
            });
            Ok(HubSnapshot { commit, files: files.collect() })
        })
    }

    /// Files in large file storage have their SHA-256 as entity tag; all others have the SHA-1 of
    /// their git object.
    fn sha256(&self, repository: &str, commit: &str, path: &str) -> Result<Option<String>, String> {
        let (repository, commit, path) =
            (self.open(repository)?, commit.to_owned(), path.to_owned());
        within(ANSWER, move || {
            let metadata = repository.get_file_metadata().filepath(path).revision(&commit).send();
            let tag = metadata.map_err(text)?.etag;
            let is_sha256 = tag.len() == 64 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
            Ok(is_sha256.then_some(tag))
        })
    }

    fn read(
        &self,
        repository: &str,
        commit: &str,
        path: &str,
        range: Range<u64>,
    ) -> Result<Vec<u8>, String> {
        let (repository, commit, path) =
            (self.open(repository)?, commit.to_owned(), path.to_owned());
        within(PIECE, move || {
            let bytes = repository
                .download_file_to_bytes()
                .filename(path)
                .revision(commit)
                .range(range)
                .send();
            Ok(bytes.map_err(text)?.to_vec())
        })
    }
}

impl HuggingFaceHub {
    fn open(&self, repository: &str) -> Result<HFRepositorySync<RepoTypeModel>, String> {
        let (owner, name) = split_id(repository);
        if let Some(client) = self.client.get() {
            return Ok(client.model(owner, name));
        }
        let mut builder = HFClientBuilder::new().retry_max_attempts(1);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.endpoint(endpoint);
        }
        let client = HFClientSync::from_inner(builder.build().map_err(text)?).map_err(text)?;
        Ok(self.client.get_or_init(|| client).model(owner, name))
    }
}

/// Runs a call that has no time limit of its own on a thread, and gives up on it after `limit`.
/// An abandoned call ends by itself when the network gives up on it; its result is dropped.
fn within<T: Send + 'static>(
    limit: Duration,
    call: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("understory-hub".to_owned());
    thread.spawn(move || sender.send(call())).map_err(text)?;
    match receiver.recv_timeout(limit) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            Err(format!("no answer within {} seconds", limit.as_secs()))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("the client failed".to_owned()),
    }
}

/// An error with all its causes: the outermost alone says little.
fn text(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";
    const GIT_OBJECT: &str = "abcdefabcdefabcdefabcdefabcdefabcdefabcd";
    const LARGE: &str = "abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789";

    /// A hub on this machine with one file, `f.bin`, which counts up from 0 to 99.
    fn local_hub() -> HuggingFaceHub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || listener.incoming().flatten().for_each(answer));
        HuggingFaceHub { endpoint: Some(endpoint), client: OnceLock::new() }
    }

    fn answer(mut stream: TcpStream) {
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let head: Vec<String> =
            lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let file: Vec<u8> = (0..100).collect();
        let range = head.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let (first, last) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
            let bounds = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
            name.eq_ignore_ascii_case("range").then_some(bounds)
        });
        let request = head.first().map_or("", String::as_str);
        let mut parts = request.split([' ', '?']);
        let (method, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let (status, body) = match path.strip_prefix("/api/models/org/name/") {
            Some("revision/main") => {
                ("200 OK", format!(r#"{{"id": "org/name", "sha": "{COMMIT}"}}"#).into_bytes())
            }
            Some(tree) if tree == format!("tree/{COMMIT}") => (
                "200 OK",
                br#"[{"type": "directory", "oid": "1", "path": "d"},
                    {"type": "file", "oid": "2", "size": 100, "path": "f.bin",
                     "lfs": {"oid": "3", "size": 100, "pointerSize": 1}}]"#
                    .to_vec(),
            ),
            None if path == format!("/org/name/resolve/{COMMIT}/f.bin") => match range {
                Some((first, last)) => ("206 Partial Content", file[first..=last].to_vec()),
                None => ("200 OK", file),
            },
            _ => ("404 Not Found", b"{}".to_vec()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             ETag: \"{GIT_OBJECT}\"\r\nX-Linked-ETag: \"{LARGE}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let body = if method == "HEAD" { Vec::new() } else { body };
        stream.write_all(&[head.into_bytes(), body].concat()).unwrap();
    }

    #[test]
    fn revision_is_looked_up_and_ranges_are_read_over_http() {
        let hub = local_hub();
        let snapshot = hub.snapshot("org/name", "main").unwrap();
        assert_eq!(snapshot.commit, COMMIT);
        let [file] = snapshot.files.as_slice() else { panic!("{snapshot:?}") };
        assert_eq!((file.path.as_str(), file.size), ("f.bin", 100));
        assert_eq!(hub.sha256("org/name", COMMIT, "f.bin").unwrap().as_deref(), Some(LARGE));
        assert_eq!(hub.read("org/name", COMMIT, "f.bin", 0..3).unwrap(), [0, 1, 2]);
        assert_eq!(hub.read("org/name", COMMIT, "f.bin", 98..100).unwrap(), [98, 99]);
    }

    #[test]
    fn what_the_hub_does_not_have_is_said_in_words() {
        let hub = local_hub();
        let error = hub.snapshot("org/other", "main").unwrap_err();
        assert!(error.contains("org/other"), "{error}");
        let error = hub.read("org/name", COMMIT, "g.bin", 0..3).unwrap_err();
        assert!(error.contains("g.bin"), "{error}");
        let nowhere = HuggingFaceHub {
            endpoint: Some("http://127.0.0.1:9".to_owned()),
            client: OnceLock::new(),
        };
        let error = nowhere.snapshot("org/name", "main").unwrap_err();
        assert!(error.to_lowercase().contains("connect"), "{error}");
    }

    #[test]
    fn call_that_does_not_return_is_given_up() {
        let (sender, receiver) = mpsc::channel::<()>();
        let result = within(Duration::from_millis(10), move || receiver.recv().map_err(text));
        assert!(result.unwrap_err().starts_with("no answer"));
        drop(sender);
        assert_eq!(within(ANSWER, || Ok(7)), Ok(7));
    }
}
