//! The Hugging Face hub, by the part of its HTTP interface that a download needs: what a revision
//! stands for, the files of a commit, and ranges of a file.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::transport::{Hub, HubFile, HubSnapshot};

/// Hugging Face's own hub.
const ENDPOINT: &str = "https://huggingface.co";

/// How long the hub may take to answer a question. Without a network this is how long it takes
/// to find out, so it is short.
const ANSWER: Duration = Duration::from_secs(10);

/// How long a piece of a file may take.
const PIECE: Duration = Duration::from_secs(90);

/// The most bytes of an answer that isn't a file. A page of a listing has at most 1,000 files.
const LONGEST_ANSWER: u64 = 16 << 20;

/// The most pages of a listing that are read: a hub that lists for ever is refused.
const MOST_PAGES: usize = 1_000;

/// The hub that `HF_ENDPOINT` names, by default Hugging Face's; with the token of `HF_TOKEN` or
/// of the user's login, if there is one.
///
/// Proxies are those of `HTTPS_PROXY` and its like; certificates are checked as the system does.
#[derive(Debug)]
pub(crate) struct HuggingFaceHub {
    endpoint: String,
    /// What goes into the `Authorization` header. A redirect to another host doesn't carry it on.
    authorization: Option<String>,
    agent: Agent,
}

/// What a revision stands for.
#[derive(Deserialize)]
struct Revision {
    sha: Option<String>,
}

/// A file or a directory of a listing.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    lfs: Option<LargeFile>,
}

/// A file in large file storage.
#[derive(Deserialize)]
struct LargeFile {
    /// Its SHA-256, in hexadecimal.
    oid: String,
}

impl HuggingFaceHub {
    /// The hub that the environment names.
    pub(crate) fn of_environment() -> Self {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Self::new(&endpoint, token())
    }

    fn new(endpoint: &str, token: Option<String>) -> Self {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .tls_config(tls)
            .user_agent(concat!("understory/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            authorization: token.map(|token| format!("Bearer {token}")),
            agent: config.new_agent(),
        }
    }

    /// Asks for something below the endpoint. An answer other than success is an error that names
    /// `what`.
    fn get(
        &self,
        what: &str,
        url: &str,
        range: Option<&Range<u64>>,
    ) -> Result<Response<Body>, String> {
        let limit = if range.is_some() { PIECE } else { ANSWER };
        let mut request = self.agent.get(url).config().timeout_global(Some(limit)).build();
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        if let Some(range) = range {
            request = request.header("Range", format!("bytes={}-{}", range.start, range.end - 1));
        }
        let response = request.call().map_err(|error| self.unanswered(&error, limit))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let said = response.headers().get("X-Error-Message").and_then(|said| said.to_str().ok());
        let said = said.map(|said| format!(" ({said})")).unwrap_or_default();
        Err(format!("{what}: {} answers {}{said}", self.endpoint, response.status()))
    }

    fn get_json<T: for<'de> Deserialize<'de>>(
        &self,
        what: &str,
        url: &str,
    ) -> Result<(T, Option<String>), String> {
        let mut response = self.get(what, url, None)?;
        let more = response.headers().get("Link").and_then(|link| next_query(link.to_str().ok()?));
        let bytes = response.body_mut().with_config().limit(LONGEST_ANSWER).read_to_vec();
        let bytes = bytes.map_err(|error| self.unanswered(&error, ANSWER))?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| format!("{what}: {} answers no JSON: {error}", self.endpoint))?;
        Ok((value, more))
    }

    fn unanswered(&self, error: &ureq::Error, limit: Duration) -> String {
        match error {
            ureq::Error::Timeout(_) => {
                format!("no answer from {} within {} seconds", self.endpoint, limit.as_secs())
            }
            error => format!("cannot connect to {}: {error}", self.endpoint),
        }
    }
}

impl Hub for HuggingFaceHub {
    fn snapshot(&self, repository: &str, revision: &str) -> Result<HubSnapshot, String> {
        let of_repository = format!("{}/api/models/{repository}", self.endpoint);
        let url = format!("{of_repository}/revision/{}", encoded(revision));
        let (found, _): (Revision, _) = self.get_json(repository, &url)?;
        let commit = found.sha.ok_or("the hub does not say which commit this is")?;

        let tree = format!("{of_repository}/tree/{}", encoded(&commit));
        let mut files = Vec::new();
        let mut query = "recursive=true".to_owned();
        for _ in 0..MOST_PAGES {
            let (entries, more): (Vec<Entry>, _) =
                self.get_json(repository, &format!("{tree}?{query}"))?;
            let entries = entries.into_iter().filter(|entry| entry.kind == "file");
            files.extend(entries.map(|Entry { path, size, lfs, .. }| {
                let sha256 = lfs.map(|large| large.oid).filter(|oid| is_sha256(oid));
                HubFile { path, size, sha256 }
            }));
            match more {
                Some(more) => query = more,
                None => return Ok(HubSnapshot { commit, files }),
            }
        }
        Err(format!("{repository}: its listing does not end"))
    }

    fn read(
        &self,
        repository: &str,
        commit: &str,
        path: &str,
        range: Range<u64>,
    ) -> Result<Vec<u8>, String> {
        let (commit, name) = (encoded(commit), encoded(path));
        let url = format!("{}/{repository}/resolve/{commit}/{name}", self.endpoint);
        let mut response = self.get(path, &url, Some(&range))?;
        if response.status() != StatusCode::PARTIAL_CONTENT && range.start > 0 {
            return Err(format!("{path}: {} knows no ranges of a file", self.endpoint));
        }
        // A longer answer is an error of its own, not the end of the memory.
        let limit = range.end - range.start + 1;
        let bytes = response.body_mut().with_config().limit(limit).read_to_vec();
        bytes.map_err(|error| self.unanswered(&error, PIECE))
    }
}

/// The query of the page that follows, from a `Link` header. Of the address only the query is
/// taken: the answer of a mirror may name the hub behind it, which gets no token meant for the
/// mirror.
fn next_query(link: &str) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let (_, rest) = next.split_once('<')?;
    let (address, _) = rest.split_once('>')?;
    Some(address.split_once('?')?.1.to_owned())
}

/// The token of `HF_TOKEN`, or the one that a login has left.
fn token() -> Option<String> {
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    let home = || {
        let home = variable("HF_HOME").map(PathBuf::from);
        let cache = || variable("XDG_CACHE_HOME").map(PathBuf::from);
        let user = || variable("HOME").map(|home| Path::new(&home).join(".cache"));
        home.or_else(|| Some(cache().or_else(user)?.join("huggingface")))
    };
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    let given = variable("HF_TOKEN");
    let given = given.or_else(|| variable("HF_TOKEN_PATH").map(PathBuf::from).and_then(read));
    let token = given.or_else(|| home().map(|home| home.join("token")).and_then(read))?;
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A path or a revision as a URL has it.
fn encoded(path: &str) -> String {
    let mut url = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            url.push(byte.into());
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url
}

#[cfg(test)]
mod tests;
