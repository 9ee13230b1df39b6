//! How calls of libraries (matrix products, collectives) use device memory, and what they report.

use super::status::{Answer, Status};
use super::{Driver, status_of};
use crate::check::{Problem, Report, Site};

/// What a library uses memory for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand {
    /// The operand's name in a report.
    pub(crate) name: &'static str,
    /// "load" or "store".
    pub(crate) access: &'static str,
}

/// A problem that ends a call.
#[derive(Debug)]
pub(crate) struct Fault {
    problem: Problem,
    operand: String,
}

impl Fault {
    pub(crate) fn new(problem: Problem, operand: impl Into<String>) -> Self {
        Self { problem, operand: operand.into() }
    }

    pub(crate) fn status(&self) -> Status {
        status_of(&self.problem)
    }
}

impl Driver {
    /// Checks that `bytes` at an address lie in one allocation that a device may use: its own, or
    /// that of a peer with access.
    pub(crate) fn reach(
        &self,
        device: usize,
        operand: &Operand,
        address: u64,
        bytes: u64,
    ) -> Result<(), Fault> {
        let access = operand.access;
        let outside = |place: String| {
            let problem = Problem::OutOfBounds { access, address, bytes, place };
            Err(Fault::new(problem, operand.name))
        };
        let Ok(owner) = self.device_of(address) else {
            return outside("which is not memory of a device, or was freed".to_owned());
        };
        let found = self.devices.get(owner).and_then(|state| state.memory.find(address));
        let base = found.map_or(address, |(base, _)| base);
        if !self.has_access(device, owner, base) {
            return outside(format!("memory of device {owner}, to which there is no peer access"));
        }
        match found {
            Some((base, size))
                if (address - base).checked_add(bytes).is_some_and(|e| e <= size) =>
            {
                Ok(())
            }
            Some((base, size)) => {
                outside(format!("offset {} of an allocation of {size} bytes", address - base))
            }
            None => outside("which is not memory of a device".to_owned()),
        }
    }

    /// The bytes of a range, whether they were written or not.
    pub(crate) fn contents(
        &self,
        device: usize,
        operand: &Operand,
        address: u64,
        bytes: u64,
    ) -> Result<Vec<u8>, Fault> {
        self.reach(device, operand, address, bytes)?;
        let memory = self.memory_at(address).ok();
        let found = memory.and_then(|memory| memory.download(address, bytes as usize).ok());
        found.ok_or_else(|| self.lost(operand, address, bytes))
    }

    /// The bytes of a range, which must have been written.
    pub(crate) fn load(
        &mut self,
        device: usize,
        operand: &Operand,
        address: u64,
        bytes: u64,
    ) -> Result<Vec<u8>, Fault> {
        let found = self.contents(device, operand, address, bytes)?;
        self.expect_written(operand, address, bytes);
        Ok(found)
    }

    /// Writes bytes.
    pub(crate) fn store(
        &self,
        device: usize,
        operand: &Operand,
        address: u64,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        self.reach(device, operand, address, bytes.len() as u64)?;
        let memory = self.memory_at(address).ok();
        let written = memory.and_then(|memory| memory.write(address, bytes).ok());
        written.ok_or_else(|| self.lost(operand, address, bytes.len() as u64))
    }

    fn lost(&self, operand: &Operand, address: u64, bytes: u64) -> Fault {
        let place = "which is not memory of a device".to_owned();
        let problem = Problem::OutOfBounds { access: operand.access, address, bytes, place };
        Fault::new(problem, operand.name)
    }

    /// Complains, once a call and operand, of bytes that nobody wrote.
    pub(crate) fn expect_written(&mut self, operand: &Operand, address: u64, bytes: u64) {
        let written = self.memory_at(address).is_ok_and(|memory| memory.is_written(address, bytes));
        if !written && self.config.options.checks.uninitialized_global {
            self.complain(Problem::UninitializedGlobal { address, bytes }, operand.name);
        }
    }

    /// Notes a problem that doesn't end the call; [`Self::conclude`] reports it.
    pub(crate) fn complain(&mut self, problem: Problem, operand: &str) {
        if !self.complaints.iter().any(|(_, known)| known == operand) {
            self.complaints.push((problem, operand.to_owned()));
        }
    }

    /// Reports what a call complained of and how it ended.
    pub(crate) fn conclude(&mut self, call: &str, result: Result<(), Fault>) -> Answer<()> {
        let complaints = std::mem::take(&mut self.complaints);
        let strict = self.config.strict && !complaints.is_empty();
        for (problem, operand) in complaints {
            self.report(call, problem, operand);
        }
        match result {
            Err(fault) => {
                let status = fault.status();
                self.report(call, fault.problem, fault.operand);
                Err(status)
            }
            Ok(()) if strict => Err(Status::LAUNCH_FAILED),
            Ok(()) => Ok(()),
        }
    }

    /// Tells why a call was refused; its code says no more than that.
    pub(crate) fn advise(&mut self, call: &str, reason: &str) {
        let problem = Problem::Refused { reason: reason.to_owned() };
        self.report(call, problem, call.to_owned());
    }

    pub(crate) fn report(&mut self, call: &str, problem: Problem, operand: String) {
        let report = Report {
            severity: problem.severity(),
            problem,
            kernel: call.to_owned(),
            block: None,
            thread: None,
            site: Site { file: None, line: None, ptx_line: 0, instruction: operand },
            other: None,
            count: 1,
        };
        (self.listener.0)(&report);
    }
}
