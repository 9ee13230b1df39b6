//! Against a hub on this machine, which records what it is asked.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::*;

const COMMIT: &str = "0123456789012345678901234567890123456789";
const LARGE: &str = "abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789";

/// One request's head: its first line and its headers.
type Head = Vec<String>;

/// A hub with one repository. `f.bin` counts up from 0 to 99; `moved.bin` is the same file on
/// another host, as large files are; `deaf.bin` comes whole, whatever is asked.
struct LocalHub {
    hub: HuggingFaceHub,
    heads: Arc<Mutex<Vec<Head>>>,
}

fn local_hub() -> LocalHub {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let head = answer(stream, port);
            seen.lock().unwrap().push(head);
        }
    });
    let hub = HuggingFaceHub::new(&format!("http://127.0.0.1:{port}/"), Some("secret".to_owned()));
    LocalHub { hub, heads }
}

fn header<'a>(head: &'a Head, wanted: &str) -> Option<&'a str> {
    head.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(wanted).then_some(value.trim())
    })
}

fn answer(mut stream: TcpStream, port: u16) -> Head {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let head: Head = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let request = head.first().map_or("", String::as_str);
    let (path, query) = {
        let target = request.split(' ').nth(1).unwrap_or("");
        target.split_once('?').unwrap_or((target, ""))
    };
    let file: Vec<u8> = (0..100).collect();
    let range = header(&head, "range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    let entry = |kind: &str, path: &str, lfs: &str| {
        format!(r#"{{"type": "{kind}", "oid": "2", "size": 100, "path": "{path}"{lfs}}}"#)
    };
    let tree = format!("/api/models/org/name/tree/{COMMIT}");
    let (status, more, body) = if path == "/api/models/org/name/revision/main" {
        ("200 OK", String::new(), format!(r#"{{"id": "x", "sha": "{COMMIT}"}}"#).into_bytes())
    } else if path == tree && query == "recursive=true" {
        let lfs = format!(r#", "lfs": {{"oid": "{LARGE}", "size": 100, "pointerSize": 1}}"#);
        let page = format!("[{}, {}]", entry("directory", "d", ""), entry("file", "f.bin", &lfs));
        let link = format!("Link: <https://behind.example{tree}?cursor=7>; rel=\"next\"\r\n");
        ("200 OK", link, page.into_bytes())
    } else if path == tree && query == "cursor=7" {
        ("200 OK", String::new(), format!("[{}]", entry("file", "d/g h.txt", "")).into_bytes())
    } else {
        let below = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
        match (below, range) {
            (Some("f.bin" | "d/g%20h.txt"), Some((first, last))) => {
                ("206 Partial Content", String::new(), file[first..=last].to_vec())
            }
            (Some("deaf.bin"), _) => ("200 OK", String::new(), file),
            (Some("moved.bin"), _) => {
                let place = format!(
                    "Location: http://localhost:{port}/org/name/resolve/{COMMIT}/f.bin\r\n"
                );
                ("302 Found", place, Vec::new())
            }
            _ => {
                let said = "X-Error-Message: it is not here\r\n".to_owned();
                ("404 Not Found", said, b"{}".to_vec())
            }
        }
    };
    let length = body.len();
    let start =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}Connection: close\r\n\r\n");
    stream.write_all(&[start.into_bytes(), body].concat()).unwrap();
    head
}

#[test]
fn revision_is_looked_up_and_ranges_are_read_over_http() {
    let LocalHub { hub, .. } = local_hub();
    let snapshot = hub.snapshot("org/name", "main").unwrap();
    assert_eq!(snapshot.commit, COMMIT);
    let files: Vec<_> = snapshot
        .files
        .iter()
        .map(|file| (file.path.as_str(), file.size, file.sha256.as_deref()))
        .collect();
    assert_eq!(files, [("f.bin", 100, Some(LARGE)), ("d/g h.txt", 100, None)]);
    assert_eq!(hub.read("org/name", COMMIT, "f.bin", 0..3).unwrap(), [0, 1, 2]);
    assert_eq!(hub.read("org/name", COMMIT, "d/g h.txt", 98..100).unwrap(), [98, 99]);
}

#[test]
fn token_goes_to_the_hub_and_not_to_the_host_that_it_redirects_to() {
    let LocalHub { hub, heads } = local_hub();
    assert_eq!(hub.read("org/name", COMMIT, "moved.bin", 5..7).unwrap(), [5, 6]);
    let heads = heads.lock().unwrap();
    let [asked, redirected] = heads.as_slice() else { panic!("{heads:?}") };
    assert_eq!(header(asked, "authorization"), Some("Bearer secret"));
    assert_eq!(header(redirected, "authorization"), None);
    assert_eq!(header(redirected, "range"), Some("bytes=5-6"), "the redirect keeps the range");
}

#[test]
fn hub_without_ranges_is_refused_rather_than_misread() {
    let LocalHub { hub, .. } = local_hub();
    let error = hub.read("org/name", COMMIT, "deaf.bin", 10..20).unwrap_err();
    assert!(error.contains("ranges"), "{error}");
    assert!(hub.read("org/name", COMMIT, "deaf.bin", 0..20).is_err(), "100 bytes for 20");
    assert_eq!(hub.read("org/name", COMMIT, "deaf.bin", 0..100).unwrap().len(), 100);
}

#[test]
fn what_the_hub_does_not_have_is_said_in_words() {
    let LocalHub { hub, .. } = local_hub();
    let error = hub.snapshot("org/other", "main").unwrap_err();
    assert!(error.contains("org/other") && error.contains("it is not here"), "{error}");
    let error = hub.read("org/name", COMMIT, "g.bin", 0..3).unwrap_err();
    assert!(error.contains("g.bin"), "{error}");
    let nowhere = HuggingFaceHub::new("http://127.0.0.1:9", None);
    let error = nowhere.snapshot("org/name", "main").unwrap_err();
    assert!(error.contains("connect"), "{error}");
}

#[test]
fn answer_that_does_not_come_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let hub = HuggingFaceHub::new(&endpoint, None);
    let limit = Duration::from_millis(50);
    let request = hub.agent.get(&endpoint).config().timeout_global(Some(limit)).build();
    let error = request.call().unwrap_err();
    assert!(hub.unanswered(&error, limit).starts_with("no answer"), "{error}");
}
