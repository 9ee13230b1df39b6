//! The outer level of PTX text: directives, variables and function heads.

use std::collections::HashSet;

use super::error::{PtxError, PtxProblem};
use super::lexer::{Kind, Token, tokens};
use super::{Function, Module, Space, Type, Variable};

/// The largest variable, in bytes.
const VARIABLE_LIMIT: u64 = 1 << 30;
/// The largest alignment, in bytes.
const ALIGN_LIMIT: u64 = 1 << 16;

pub(super) fn parse(text: &str) -> Result<Module, PtxError> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens: &tokens, at: 0, module: Module::default() };
    parser.module()?;
    Ok(parser.module)
}

/// A place in the tokens. [`super::statement`] adds what reads function bodies.
pub(super) struct Parser<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    module: Module,
}

impl<'a> Parser<'a> {
    pub(super) fn peek(&self) -> Kind<'a> {
        self.tokens.get(self.at).map_or(Kind::End, |token| token.kind)
    }

    pub(super) fn peek_second(&self) -> Kind<'a> {
        self.tokens.get(self.at + 1).map_or(Kind::End, |token| token.kind)
    }

    pub(super) fn line(&self) -> u32 {
        let last = self.tokens.last().map_or(1, |token| token.line);
        self.tokens.get(self.at).map_or(last, |token| token.line)
    }

    pub(super) fn advance(&mut self) -> Kind<'a> {
        let kind = self.peek();
        self.at += 1;
        kind
    }

    pub(super) fn accept(&mut self, sign: char) -> bool {
        let found = self.peek() == Kind::Sign(sign);
        if found {
            self.at += 1;
        }
        found
    }

    pub(super) fn expect(&mut self, sign: char, expected: &'static str) -> Result<(), PtxError> {
        if self.accept(sign) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    pub(super) fn unexpected(&self, expected: &'static str) -> PtxError {
        PtxProblem::Expected { expected, found: self.peek().describe() }.at(self.line())
    }

    pub(super) fn fail(&self, problem: PtxProblem) -> PtxError {
        problem.at(self.line())
    }

    pub(super) fn word(&mut self, expected: &'static str) -> Result<&'a str, PtxError> {
        match self.peek() {
            Kind::Word(word) => {
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.unexpected(expected)),
        }
    }

    pub(super) fn count(&mut self, what: &'static str, limit: u64) -> Result<u64, PtxError> {
        match self.peek() {
            Kind::Integer(value) if value > limit => {
                Err(self.fail(PtxProblem::TooLarge { what, value, limit }))
            }
            Kind::Integer(value) => {
                self.at += 1;
                Ok(value)
            }
            _ => Err(self.unexpected(what)),
        }
    }

    fn module(&mut self) -> Result<(), PtxError> {
        let mut names = HashSet::new();
        loop {
            let word = match self.peek() {
                Kind::End if self.module.version == (0, 0) => {
                    return Err(self.unexpected("a .version directive"));
                }
                Kind::End => return Ok(()),
                Kind::Sign(';') => {
                    self.at += 1;
                    continue;
                }
                Kind::Word(word) => word,
                _ => return Err(self.unexpected("a directive")),
            };
            match word {
                ".version" => self.version()?,
                ".target" => {
                    self.at += 1;
                    self.module.target = self.word("a target")?.to_owned();
                    while self.accept(',') {
                        self.word("a target option")?;
                    }
                }
                ".address_size" => {
                    self.at += 1;
                    if self.peek() != Kind::Integer(64) {
                        return Err(self.unexpected("an address size of 64"));
                    }
                    self.at += 1;
                }
                ".file" => self.file()?,
                ".section" => self.section()?,
                ".pragma" | ".alias" => self.skip_statement()?,
                _ => self.declaration(&mut names)?,
            }
        }
    }

    fn version(&mut self) -> Result<(), PtxError> {
        self.at += 1;
        // `8.8` is read as a fraction.
        let value = match self.advance() {
            Kind::Double(bits) => f64::from_bits(bits),
            Kind::Integer(whole) => whole as f64,
            _ => return Err(self.unexpected("a version")),
        };
        let tenths = (value * 10.0).round().clamp(0.0, 10_000.0) as u32;
        self.module.version = (tenths / 10, tenths % 10);
        Ok(())
    }

    fn file(&mut self) -> Result<(), PtxError> {
        self.at += 1;
        let number = self.count("a file number", u64::from(u32::MAX))?;
        let Kind::Text(name) = self.advance() else {
            return Err(self.unexpected("a file name"));
        };
        self.module.files.insert(number as u32, name.to_owned());
        while self.accept(',') {
            self.count("a time or size", u64::MAX)?;
        }
        Ok(())
    }

    /// Debug sections are passed over.
    fn section(&mut self) -> Result<(), PtxError> {
        let line = self.line();
        loop {
            match self.advance() {
                Kind::Sign('}') => return Ok(()),
                Kind::End => return Err(PtxProblem::Unterminated("a section").at(line)),
                _ => {}
            }
        }
    }

    pub(super) fn skip_statement(&mut self) -> Result<(), PtxError> {
        let line = self.line();
        loop {
            match self.advance() {
                Kind::Sign(';') => return Ok(()),
                Kind::End => return Err(PtxProblem::Unterminated("a statement").at(line)),
                _ => {}
            }
        }
    }

    /// A variable, kernel or function, with the words before it.
    fn declaration(&mut self, names: &mut HashSet<String>) -> Result<(), PtxError> {
        let mut is_extern = false;
        loop {
            let line = self.line();
            match self.peek() {
                Kind::Word(".visible" | ".weak" | ".common") => self.at += 1,
                Kind::Word(".extern") => {
                    self.at += 1;
                    is_extern = true;
                }
                Kind::Word(word @ (".entry" | ".func")) => {
                    self.at += 1;
                    let function = self.function(word == ".entry", line)?;
                    // A declaration may come before the definition.
                    let before =
                        self.module.functions.iter().position(|other| other.name == function.name);
                    match before {
                        Some(_) if function.body.is_none() => {}
                        Some(index) => match self.module.functions.get_mut(index) {
                            Some(other) if other.body.is_none() => *other = function,
                            _ => return Err(PtxProblem::Twice(function.name).at(line)),
                        },
                        None => self.module.functions.push(function),
                    }
                    return Ok(());
                }
                Kind::Word(word) => {
                    let space = Space::parse(word.trim_start_matches('.'))
                        .filter(|space| !matches!(space, Space::Param | Space::Local))
                        .ok_or_else(|| self.fail(PtxProblem::Directive(word.to_owned())))?;
                    self.at += 1;
                    let mut variable = self.variable(space)?;
                    variable.is_extern = is_extern;
                    self.expect(';', "`;` after a variable")?;
                    if names.insert(variable.name.clone()) {
                        self.module.variables.push(variable);
                    } else if !is_extern {
                        return Err(PtxProblem::Twice(variable.name).at(line));
                    }
                    return Ok(());
                }
                _ => return Err(self.unexpected("a declaration")),
            }
        }
    }

    fn function(&mut self, is_kernel: bool, line: u32) -> Result<Function, PtxError> {
        let results = if self.peek() == Kind::Sign('(') { self.parameters()? } else { Vec::new() };
        let name = self.word("a function name")?.to_owned();
        let parameters =
            if self.peek() == Kind::Sign('(') { self.parameters()? } else { Vec::new() };
        let mut max_threads = None;
        let mut cluster = None;
        loop {
            match self.peek() {
                Kind::Word(".maxntid" | ".reqntid") => {
                    self.at += 1;
                    let mut threads = self.count("a number of threads", 1024)?;
                    while self.accept(',') {
                        threads = threads.saturating_mul(self.count("a number of threads", 1024)?);
                    }
                    max_threads = Some(u32::try_from(threads).unwrap_or(u32::MAX));
                }
                Kind::Word(".reqnctapercluster") => {
                    self.at += 1;
                    let mut blocks = [1; 3];
                    for (axis, size) in blocks.iter_mut().enumerate() {
                        if axis == 0 || self.accept(',') {
                            *size = self.count("blocks of a cluster", 1 << 16)? as u32;
                        }
                    }
                    cluster = Some(blocks);
                }
                // A launch must come with clusters, of any size.
                Kind::Word(".explicitcluster") => self.at += 1,
                Kind::Word(".minnctapersm" | ".maxnreg" | ".maxclusterrank") => {
                    self.at += 1;
                    self.count("a number", u64::from(u32::MAX))?;
                }
                Kind::Word(".noreturn") => self.at += 1,
                Kind::Word(".pragma") => self.skip_statement()?,
                Kind::Sign(';') => {
                    self.at += 1;
                    let body = None;
                    return Ok(Function {
                        name,
                        is_kernel,
                        results,
                        parameters,
                        max_threads,
                        cluster,
                        body,
                        line,
                    });
                }
                Kind::Sign('{') => {
                    let body = Some(self.body()?);
                    return Ok(Function {
                        name,
                        is_kernel,
                        results,
                        parameters,
                        max_threads,
                        cluster,
                        body,
                        line,
                    });
                }
                Kind::Word(word) => {
                    return Err(self.fail(PtxProblem::Directive(word.to_owned())));
                }
                _ => return Err(self.unexpected("the body of a function")),
            }
        }
    }

    pub(super) fn parameters(&mut self) -> Result<Vec<Variable>, PtxError> {
        self.expect('(', "`(`")?;
        let mut all = Vec::new();
        while !self.accept(')') {
            if !all.is_empty() {
                self.expect(',', "`,` or `)`")?;
            }
            match self.word("a parameter")? {
                ".param" => all.push(self.variable(Space::Param)?),
                other => return Err(self.fail(PtxProblem::Directive(other.to_owned()))),
            }
        }
        Ok(all)
    }

    /// A variable, from after its space up to before the `;`, `,` or `)`.
    pub(super) fn variable(&mut self, space: Space) -> Result<Variable, PtxError> {
        let mut align = None;
        let mut ty = None;
        let name = loop {
            let word = self.word("a variable")?;
            match word {
                ".align" => {
                    let value = self.count("an alignment", ALIGN_LIMIT)?;
                    if !value.is_power_of_two() {
                        return Err(self.fail(PtxProblem::Number(value.to_string())));
                    }
                    align = Some(value);
                }
                // What a pointer parameter points to is of no interest here.
                ".ptr" => {}
                ".global" | ".const" | ".shared" | ".local" if space == Space::Param => {}
                ".v2" | ".v4" => return Err(self.fail(PtxProblem::Type(word.to_owned()))),
                _ if word.starts_with('.') => {
                    let name = word.trim_start_matches('.');
                    let found = Type::parse(name)
                        .ok_or_else(|| self.fail(PtxProblem::Type(name.to_owned())))?;
                    // In `.ptr .align 8`, the alignment is that of what is pointed to.
                    align = align.filter(|_| ty.is_none());
                    ty = Some(found);
                }
                _ => break word.to_owned(),
            }
        };
        let ty = ty.ok_or_else(|| self.unexpected("a type"))?;
        let own = ty.bytes() as u64;
        let pointer_parameter = space == Space::Param && self.peek() != Kind::Sign('[');
        let align = if pointer_parameter { own } else { align.unwrap_or(own).max(own) };
        let mut elements = 1u64;
        let mut is_open = false;
        while self.accept('[') {
            if self.accept(']') {
                is_open = true;
                continue;
            }
            elements = elements.saturating_mul(self.count("an array size", VARIABLE_LIMIT)?);
            self.expect(']', "`]`")?;
        }
        let mut bytes = elements.saturating_mul(own);
        if bytes > VARIABLE_LIMIT {
            let what = "a variable's size";
            return Err(self.fail(PtxProblem::TooLarge {
                what,
                value: bytes,
                limit: VARIABLE_LIMIT,
            }));
        }
        let mut variable = Variable {
            name,
            space,
            ty,
            align,
            bytes,
            initial: Vec::new(),
            addresses: Vec::new(),
            is_extern: false,
        };
        if self.accept('=') {
            self.initializer(&mut variable, 0)?;
        }
        if is_open {
            bytes = variable.initial.len() as u64;
            variable.bytes = bytes;
        }
        if variable.initial.len() as u64 > bytes {
            return Err(self.fail(PtxProblem::Initializer(variable.name)));
        }
        Ok(variable)
    }

    fn initializer(&mut self, variable: &mut Variable, depth: u32) -> Result<(), PtxError> {
        if depth > 8 {
            return Err(self.fail(PtxProblem::Nested));
        }
        if self.accept('{') {
            let mut first = true;
            while !self.accept('}') {
                if !first {
                    self.expect(',', "`,` or `}`")?;
                }
                first = false;
                self.initializer(variable, depth + 1)?;
            }
            return Ok(());
        }
        if let Kind::Word(word) = self.peek() {
            return self.address_initializer(word, variable);
        }
        let negative = self.accept('-');
        let bits = match self.peek() {
            Kind::Integer(value) if negative => value.wrapping_neg(),
            Kind::Integer(value) => value,
            Kind::Single(bits) => u64::from(bits ^ (u32::from(negative) << 31)),
            Kind::Double(bits) if variable.ty == Type::F32 => {
                u64::from((f64::from_bits(bits) as f32).to_bits())
            }
            Kind::Double(bits) => bits ^ (u64::from(negative) << 63),
            _ => return Err(self.unexpected("an initial value")),
        };
        self.at += 1;
        append(variable, bits);
        Ok(())
    }

    /// `name`, `name+4` or `generic(name)+4`.
    fn address_initializer(&mut self, word: &str, variable: &mut Variable) -> Result<(), PtxError> {
        self.at += 1;
        let mut name = word;
        if word == "generic" && self.accept('(') {
            name = self.word("a variable's name")?;
            self.expect(')', "`)`")?;
        }
        let mut addend = 0;
        if self.accept('+') {
            addend = self.count("an offset", VARIABLE_LIMIT)? as i64;
        }
        let offset = variable.initial.len() as u64;
        variable.addresses.push((offset, name.to_owned(), addend));
        append(variable, 0);
        Ok(())
    }
}

fn append(variable: &mut Variable, bits: u64) {
    let size = variable.ty.bytes().min(8);
    variable.initial.extend(bits.to_le_bytes().iter().take(size));
}
