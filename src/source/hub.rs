//! The Hugging Face hub.

use std::ops::Range;
use std::sync::mpsc;
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
#[derive(Debug)]
pub(crate) struct HuggingFaceHub;

impl Hub for HuggingFaceHub {
    fn snapshot(&self, repository: &str, revision: &str) -> Result<HubSnapshot, String> {
        let (repository, revision) = (repository.to_owned(), revision.to_owned());
        within(ANSWER, move || {
            let repository = open(&repository)?;
            let information = repository.info().revision(&revision).send().map_err(text)?;
            let commit = information.sha.ok_or("the hub does not say which commit this is")?;
            let entries =
                repository.list_tree().revision(&commit).recursive(true).send().map_err(text)?;
            let files = entries.into_iter().filter_map(|entry| match entry {
                RepoTreeEntry::File { size, path, lfs, .. } => {
                    Some(HubFile { path, size, sha256: lfs.and_then(|lfs| lfs.sha256) })
                }
                RepoTreeEntry::Directory { .. } => None,
            });
            Ok(HubSnapshot { commit, files: files.collect() })
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
            (repository.to_owned(), commit.to_owned(), path.to_owned());
        within(PIECE, move || {
            let bytes = open(&repository)?
                .download_file_to_bytes()
                .filename(path)
                .revision(commit)
                .range(range)
                .send();
            Ok(bytes.map_err(text)?.to_vec())
        })
    }
}

fn open(repository: &str) -> Result<HFRepositorySync<RepoTypeModel>, String> {
    let (owner, name) = split_id(repository);
    let client = HFClientBuilder::new().retry_max_attempts(1).build().map_err(text)?;
    Ok(HFClientSync::from_inner(client).map_err(text)?.model(owner, name))
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
    use super::*;

    #[test]
    fn call_that_does_not_return_is_given_up() {
        let (sender, receiver) = mpsc::channel::<()>();
        let result = within(Duration::from_millis(10), move || receiver.recv().map_err(text));
        assert!(result.unwrap_err().starts_with("no answer"));
        drop(sender);
        assert_eq!(within(ANSWER, || Ok(7)), Ok(7));
    }
}
