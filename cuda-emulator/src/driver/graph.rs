//! Capture of streams, and graphs.

use std::collections::HashMap;

use super::Driver;
use super::status::{Answer, Status};
use super::work::{Capture, CaptureMode, CaptureStatus};

impl Driver {
    /// `cuStreamBeginCapture`.
    pub fn begin_capture(&mut self, handle: u64, mode: CaptureMode) -> Answer<()> {
        let id = self.handle();
        let stream = self.streams.get_mut(&handle).ok_or(Status::INVALID_HANDLE)?;
        if handle == super::default_stream(stream.device) {
            return Err(Status::CAPTURE_UNSUPPORTED);
        }
        if stream.capture.is_some() {
            return Err(Status::INVALID_VALUE);
        }
        stream.capture = Some(id);
        stream.covers.clear();
        let capture = Capture {
            origin: handle,
            mode,
            thread: std::thread::current().id(),
            nodes: Vec::new(),
            invalid: false,
            last: HashMap::new(),
        };
        self.captures.insert(id, capture);
        Ok(())
    }

    /// `cuStreamIsCapturing`.
    pub fn capture_status(&self, handle: u64) -> Answer<CaptureStatus> {
        let stream = self.streams.get(&handle).ok_or(Status::INVALID_HANDLE)?;
        let capture = stream.capture.and_then(|id| self.captures.get(&id));
        Ok(match capture {
            None => CaptureStatus::None,
            Some(capture) if capture.invalid => CaptureStatus::Invalidated,
            Some(_) => CaptureStatus::Active,
        })
    }

    /// `cuStreamEndCapture`: the graph.
    pub fn end_capture(&mut self, handle: u64) -> Answer<u64> {
        let stream = self.streams.get(&handle).ok_or(Status::INVALID_HANDLE)?;
        let id = stream.capture.ok_or(Status::INVALID_VALUE)?;
        let covers = stream.covers.clone();
        let origin = self.captures.get(&id).map_or(0, |capture| capture.origin);
        if origin != handle {
            return Err(Status::CAPTURE_UNMATCHED);
        }
        let capture = self.captures.remove(&id).ok_or(Status::INVALID_VALUE)?;
        for stream in self.streams.values_mut().filter(|stream| stream.capture == Some(id)) {
            stream.capture = None;
            stream.covers.clear();
        }
        if capture.invalid {
            return Err(Status::CAPTURE_INVALIDATED);
        }
        // Whatever other streams did must be ordered before the end of the first one.
        let joined = |(stream, last): (&u64, &usize)| {
            *stream == handle || covers.get(stream).is_some_and(|covered| covered >= last)
        };
        if !capture.last.iter().all(joined) {
            return Err(Status::CAPTURE_UNJOINED);
        }
        let graph = self.handle();
        self.graphs.insert(graph, capture.nodes);
        Ok(graph)
    }

    /// `cuGraphInstantiate`.
    pub fn instantiate(&mut self, graph: u64) -> Answer<u64> {
        let nodes = self.graphs.get(&graph).ok_or(Status::INVALID_HANDLE)?.clone();
        let handle = self.handle();
        self.executables.insert(handle, nodes);
        Ok(handle)
    }

    /// `cuGraphLaunch`. The nodes run in the order in which they were captured, which is one of
    /// those that the graph allows.
    pub fn launch_graph(&mut self, executable: u64, stream: u64) -> Answer<()> {
        let nodes = self.executables.get(&executable).ok_or(Status::INVALID_HANDLE)?.clone();
        for node in nodes {
            self.push(stream, node)?;
        }
        Ok(())
    }

    /// `cuGraphUpload`.
    pub fn upload_graph(&self, executable: u64) -> Answer<()> {
        self.executables.get(&executable).map(|_| ()).ok_or(Status::INVALID_HANDLE)
    }

    /// Number of nodes of a graph.
    pub fn graph_nodes(&self, graph: u64) -> Answer<usize> {
        self.graphs.get(&graph).map(Vec::len).ok_or(Status::INVALID_HANDLE)
    }

    /// `cuGraphDestroy`.
    pub fn destroy_graph(&mut self, graph: u64) -> Answer<()> {
        self.graphs.remove(&graph).map(|_| ()).ok_or(Status::INVALID_HANDLE)
    }

    /// `cuGraphExecDestroy`.
    pub fn destroy_executable(&mut self, executable: u64) -> Answer<()> {
        self.executables.remove(&executable).map(|_| ()).ok_or(Status::INVALID_HANDLE)
    }
}
