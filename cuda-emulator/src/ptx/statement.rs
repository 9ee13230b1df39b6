//! Function bodies: declarations, labels, instructions and their operands.

use super::error::{PtxError, PtxProblem};
use super::lexer::Kind;
use super::module::Parser;
use super::{Instruction, Operand, SourceLine, Space, Statement, Type};

/// The most registers of one declaration.
const REGISTER_LIMIT: u64 = 1 << 20;
/// The deepest nesting of operands that PTX has.
const DEPTH: u32 = 4;

impl Parser<'_> {
    /// A body from its `{` to the matching `}`.
    pub(super) fn body(&mut self) -> Result<Vec<Statement>, PtxError> {
        let opened = self.line();
        self.expect('{', "`{`")?;
        let mut statements = Vec::new();
        let mut depth = 0u32;
        let mut source = None;
        loop {
            match self.peek() {
                Kind::End => return Err(PtxProblem::Unterminated("a function").at(opened)),
                Kind::Sign('{') => {
                    self.advance();
                    depth += 1;
                    statements.push(Statement::Open);
                }
                Kind::Sign('}') => {
                    self.advance();
                    if depth == 0 {
                        return Ok(statements);
                    }
                    depth -= 1;
                    statements.push(Statement::Close);
                }
                Kind::Sign(';') => _ = self.advance(),
                Kind::Word(".loc") => source = Some(self.location()?),
                Kind::Word(word) if word.starts_with('.') => {
                    self.directive(word, &mut statements)?;
                }
                Kind::Word(word) if self.peek_second() == Kind::Sign(':') => {
                    self.advance();
                    self.advance();
                    match self.peek() {
                        Kind::Word(".branchtargets" | ".calltargets") => {
                            self.advance();
                            let targets = self.targets()?;
                            statements.push(Statement::Targets(word.to_owned(), targets));
                        }
                        Kind::Word(".callprototype") => {
                            self.advance();
                            let (results, parameters) = self.prototype()?;
                            let name = word.to_owned();
                            statements.push(Statement::Prototype(name, results, parameters));
                        }
                        _ => statements.push(Statement::Label(word.to_owned())),
                    }
                }
                Kind::Word(_) | Kind::Sign('@') => {
                    let instruction = self.instruction(source)?;
                    statements.push(Statement::Instruction(instruction));
                }
                _ => return Err(self.unexpected("an instruction")),
            }
        }
    }

    /// `.loc file line column`, with what follows about inlined functions.
    fn location(&mut self) -> Result<SourceLine, PtxError> {
        let at = self.line();
        self.advance();
        let file = self.count("a file number", u64::from(u32::MAX))? as u32;
        let line = self.count("a line number", u64::from(u32::MAX))? as u32;
        self.count("a column", u64::from(u32::MAX))?;
        // `, function_name NAME, inlined_at FILE LINE COLUMN` stands on the same line.
        while self.line() == at && self.accept(',') {
            while self.line() == at && !matches!(self.peek(), Kind::Sign(',' | ';') | Kind::End) {
                self.advance();
            }
        }
        Ok(SourceLine { file, line })
    }

    fn directive(&mut self, word: &str, statements: &mut Vec<Statement>) -> Result<(), PtxError> {
        // Inline assembly may leave out the space: `.reg.b32 x;`.
        let glued = word.strip_prefix(".reg.");
        let word = if glued.is_some() { ".reg" } else { word };
        self.advance();
        match word {
            ".reg" => {
                let name = match glued {
                    Some(ty) => ty,
                    None => self.word("a type")?,
                };
                let ty = Type::parse(name.trim_start_matches('.'))
                    .ok_or_else(|| self.fail(PtxProblem::Type(name.to_owned())))?;
                let mut names = Vec::new();
                loop {
                    let name = self.word("a register")?.to_owned();
                    let mut count = None;
                    if self.accept('<') {
                        count = Some(self.count("a number of registers", REGISTER_LIMIT)? as u32);
                        self.expect('>', "`>`")?;
                    }
                    names.push((name, count));
                    if !self.accept(',') {
                        break;
                    }
                }
                self.expect(';', "`;` after registers")?;
                statements.push(Statement::Registers(ty, names));
            }
            ".shared" | ".local" | ".param" | ".const" | ".global" => {
                let space = Space::parse(word.trim_start_matches('.')).unwrap_or(Space::Local);
                let variable = self.variable(space)?;
                self.expect(';', "`;` after a variable")?;
                statements.push(Statement::Variable(variable));
            }
            ".pragma" => self.skip_statement()?,
            other => return Err(self.fail(PtxProblem::Directive(other.to_owned()))),
        }
        Ok(())
    }

    /// `(results) _ (parameters)`, with what else is said before the `;`.
    fn prototype(&mut self) -> Result<(Vec<u64>, Vec<u64>), PtxError> {
        let sizes = |variables: Vec<super::Variable>| variables.iter().map(|v| v.bytes).collect();
        let mut lists = [Vec::new(), Vec::new()];
        if self.peek() == Kind::Sign('(') {
            lists[0] = sizes(self.parameters()?);
        }
        self.word("`_`")?;
        if self.peek() == Kind::Sign('(') {
            lists[1] = sizes(self.parameters()?);
        }
        self.skip_statement()?;
        let [results, parameters] = lists;
        Ok((results, parameters))
    }

    fn targets(&mut self) -> Result<Vec<String>, PtxError> {
        let mut all = vec![self.word("a label")?.to_owned()];
        while self.accept(',') {
            all.push(self.word("a label")?.to_owned());
        }
        self.expect(';', "`;` after branch targets")?;
        Ok(all)
    }

    fn instruction(&mut self, source: Option<SourceLine>) -> Result<Instruction, PtxError> {
        let line = self.line();
        let mut guard = None;
        if self.accept('@') {
            let negated = self.accept('!');
            guard = Some((self.word("a predicate")?.to_owned(), negated));
        }
        let name = self.word("an instruction")?.to_owned();
        let mut operands = Vec::new();
        if !self.accept(';') {
            loop {
                operands.push(self.operand(0)?);
                if self.accept(';') {
                    break;
                }
                self.expect(',', "`,` or `;`")?;
            }
        }
        Ok(Instruction { guard, name, operands, line, source })
    }

    fn operand(&mut self, depth: u32) -> Result<Operand, PtxError> {
        if depth > DEPTH {
            return Err(self.fail(PtxProblem::Nested));
        }
        let first = match self.peek() {
            Kind::Sign('{') => Operand::Vector(self.operands('{', '}', depth)?),
            Kind::Sign('(') => Operand::List(self.operands('(', ')', depth)?),
            Kind::Sign('[') => self.address(depth)?,
            Kind::Sign('!') => {
                self.advance();
                Operand::Not(self.word("a predicate")?.to_owned())
            }
            Kind::Word(word) => {
                self.advance();
                if matches!(self.peek(), Kind::Sign('+' | '-')) {
                    Operand::Sum(word.to_owned(), self.offset()?)
                } else {
                    Operand::Name(word.to_owned())
                }
            }
            _ => self.number()?,
        };
        if self.accept('|') {
            let second = self.operand(depth + 1)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn operands(&mut self, open: char, close: char, depth: u32) -> Result<Vec<Operand>, PtxError> {
        self.expect(open, "an opening bracket")?;
        let mut all = Vec::new();
        while !self.accept(close) {
            if !all.is_empty() {
                self.expect(',', "`,` or a closing bracket")?;
            }
            all.push(self.operand(depth + 1)?);
        }
        Ok(all)
    }

    fn number(&mut self) -> Result<Operand, PtxError> {
        let negative = self.accept('-');
        let operand = match self.peek() {
            Kind::Integer(value) if negative => Operand::Integer((value as i64).wrapping_neg()),
            Kind::Integer(value) => Operand::Integer(value as i64),
            Kind::Single(bits) => Operand::Single(bits ^ (u32::from(negative) << 31)),
            Kind::Double(bits) => Operand::Double(bits ^ (u64::from(negative) << 63)),
            _ => return Err(self.unexpected("an operand")),
        };
        self.advance();
        Ok(operand)
    }

    /// `+4`, `-4` or `+-4`.
    fn offset(&mut self) -> Result<i64, PtxError> {
        let mut negative = false;
        while let Kind::Sign(sign @ ('+' | '-')) = self.peek() {
            negative ^= sign == '-';
            self.advance();
        }
        match self.advance() {
            Kind::Integer(value) if negative => Ok((value as i64).wrapping_neg()),
            Kind::Integer(value) => Ok(value as i64),
            _ => Err(self.unexpected("an offset")),
        }
    }

    fn address(&mut self, depth: u32) -> Result<Operand, PtxError> {
        self.expect('[', "`[`")?;
        let (base, mut offset) = match self.operand(depth + 1)? {
            Operand::Sum(name, offset) => (Operand::Name(name), offset),
            base @ (Operand::Name(_) | Operand::Integer(_)) => (base, 0),
            _ => return Err(self.unexpected("an address")),
        };
        if matches!(self.peek(), Kind::Sign('+' | '-')) {
            offset = offset.wrapping_add(self.offset()?);
        }
        let mut coordinates = Vec::new();
        while self.accept(',') {
            coordinates.push(self.operand(depth + 1)?);
        }
        self.expect(']', "`]`")?;
        Ok(Operand::Address { base: Box::new(base), offset, coordinates })
    }
}
