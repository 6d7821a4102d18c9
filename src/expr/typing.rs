//! What is certainly wrong with an expression, found before a request comes.
//!
//! One walk over the tree knows the type of every part as far as it can be known (a body's fields are [`Type::Any`]),
//! reports what nothing has and what no operator takes, counts parts, and replaces what the meter must see
//! ([`METERED`]). Reported is only what is wrong whatever the request: what may be right is left to run. Longer
//! than most files: the walk has one rule for each operator and each form of call, and they are read together.

use super::functions::METERED;
use super::scope::{Pattern, is_hearsay, names};
use super::types::{FUNCTIONS, MACROS, METHODS, Type, field, result};
use super::{MAX_DEPTH, MAX_PARTS, Place, Uses};
use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use crate::manifest::Spanned;
use cel::IdedExpr;
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SelectExpr, SourceInfo, operators,
};

/// Bytes that a compiled pattern may take.
const PATTERN_SIZE: usize = 256 << 10;
/// Macros in one another.
const MAX_NESTING: usize = 2;

/// A tree that is sound.
pub(super) struct Typed {
    pub(super) tree: IdedExpr,
    pub(super) patterns: Vec<Pattern>,
    pub(super) parts: u64,
    pub(super) uses: Uses,
}

/// The fault of a text that is no expression.
pub(super) fn syntax_fault(text: &Spanned<String>, errors: &cel::ParseErrors) -> Diagnostic {
    let first = errors.errors.first();
    let told = first.map(|error| error.msg.as_str()).unwrap_or_default();
    let told = told.strip_prefix("Syntax error: ").unwrap_or(told);
    let told = told.lines().next().unwrap_or_default();
    // The grammar's own words for what it expected are the names of its rules.
    let told = told.split(" expecting ").next().unwrap_or_default().trim();
    let message = match told {
        "" | "UNKNOWN" => "this is not an expression".to_owned(),
        told => format!("this is not an expression: {told}"),
    };
    let span = match first.map(|error| error.pos) {
        Some((line, column)) if column > 0 => {
            let before: usize =
                text.split_inclusive('\n').take(usize::try_from(line - 1).unwrap_or(0)).map(str::len).sum();
            let column = usize::try_from(column - 1).unwrap_or(0);
            let here = text.get(before..).unwrap_or_default();
            let bytes: usize = here.chars().take(column).map(char::len_utf8).sum();
            part(text, before + bytes, 1)
        }
        _ => text.span,
    };
    let help = match told.contains("has() macro") {
        true => {
            "`has` takes a field, as in `has(claims.channel)`; for a header write `'x-name' in request.headers`"
        }
        false => "write it in CEL, such as `claims.role == 'admin' && request.path.startsWith('/x')`",
    };
    Diagnostic::error(Code::EXPRESSION, span, message).help(help)
}

/// The place of a part of a text, if it stands in the file as it is; else of the whole.
fn part(text: &Spanned<String>, start: usize, len: usize) -> Span {
    match (text.span.len as usize).checked_sub(text.len()) {
        Some(0) => text.span.part(start, len),
        Some(2) => text.span.part(start + 1, len),
        _ => text.span,
    }
}

/// Walks a tree. Reports every fault; `None` if there was an error.
pub(super) fn check(
    mut tree: IdedExpr,
    source: &SourceInfo,
    text: &Spanned<String>,
    place: Place,
    out: &mut Diagnostics,
) -> Option<Typed> {
    let before = out.counts().0;
    let mut walk = Walk {
        source,
        text,
        place,
        out,
        bound: Vec::new(),
        depth: 0,
        nesting: 0,
        patterns: Vec::new(),
        parts: 0,
        uses: Uses::default(),
        constant: true,
    };
    let kind = walk.part(&mut tree);
    if walk.parts > MAX_PARTS {
        let message = format!("this expression has more than {MAX_PARTS} parts");
        walk.out.push(
            Diagnostic::error(Code::EXPRESSION_COST, text.span, message)
                .help("say it shorter, or in two stages"),
        );
    }
    if place == Place::Condition && walk.out.counts().0 == before {
        if !kind.may_be(Type::Bool) {
            let message = format!("a condition is true or false, and this is {}", kind.words());
            walk.out.push(
                Diagnostic::error(Code::EXPRESSION_TYPE, text.span, message)
                    .help("compare it with something: `==`, `!=`, `in`, `has(…)`"),
            );
        } else if walk.constant {
            let message = "this condition is the same for every request";
            walk.out.push(
                Diagnostic::error(Code::EXPRESSION_TYPE, text.span, message)
                    .help("use `route`, `request` or `claims` in it, or remove the stage or its `when`"),
            );
        }
    }
    let (patterns, parts, uses) = (walk.patterns, walk.parts.max(1), walk.uses);
    (out.counts().0 == before).then_some(Typed { tree, patterns, parts, uses })
}

struct Walk<'a> {
    source: &'a SourceInfo,
    text: &'a Spanned<String>,
    place: Place,
    out: &'a mut Diagnostics,
    /// Names that macros bind, innermost last.
    bound: Vec<(String, Type)>,
    /// Parts around the place.
    depth: usize,
    /// Macros around the place.
    nesting: usize,
    patterns: Vec<Pattern>,
    parts: u64,
    uses: Uses,
    /// Whether nothing of a request was met.
    constant: bool,
}

impl Walk<'_> {
    fn span(&self, id: u64) -> Span {
        let Some((start, stop)) = self.source.offset_for(id) else { return self.text.span };
        let (start, stop) = (start as usize, stop as usize + 1);
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (before, after) = (self.text.get(..start), self.text.get(start + 1..));
        // The parser places a field at its dot, and a call at its bracket.
        match (self.text.as_bytes().get(start), before, after) {
            (Some(b'.'), _, Some(after)) => {
                let name = after.find(|c| !word(c)).unwrap_or(after.len());
                part(self.text, start + 1, name.max(1))
            }
            (Some(b'('), Some(before), _) => {
                let name = before.len() - before.trim_end_matches(word).len();
                part(self.text, start - name, name.max(1))
            }
            _ => part(self.text, start, stop.saturating_sub(start).max(1)),
        }
    }

    fn fault(&mut self, code: Code, id: u64, message: impl Into<String>, help: Option<String>) -> Type {
        let span = self.span(id);
        self.out.push(Diagnostic::error(code, span, message).maybe_help(help));
        Type::Any
    }

    fn variables(&self) -> &'static [&'static str] {
        match self.place {
            Place::Condition => &["route", "request", "claims"],
            Place::Request => &["route", "request", "claims", "body"],
            Place::Response => &["route", "request", "claims", "body", "response"],
        }
    }

    fn part(&mut self, expr: &mut IdedExpr) -> Type {
        if self.depth == MAX_DEPTH {
            let help = Some(format!("it nests {MAX_DEPTH} deep at most: say it in smaller steps"));
            return self.fault(Code::EXPRESSION_COST, expr.id, "this expression nests too deep", help);
        }
        self.depth += 1;
        self.parts += 1;
        let kind = self.kind(expr);
        self.depth -= 1;
        kind
    }

    fn kind(&mut self, expr: &mut IdedExpr) -> Type {
        let id = expr.id;
        match &mut expr.expr {
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Type::Bool,
                LiteralValue::Double(_) => Type::Double,
                LiteralValue::Int(_) => Type::Int,
                LiteralValue::UInt(_) => Type::UInt,
                LiteralValue::Null => Type::Null,
                LiteralValue::String(_) => Type::Text,
                LiteralValue::Bytes(_) => {
                    let help = Some("write a text: 'abc'".to_owned());
                    self.fault(Code::EXPRESSION_TYPE, id, "bytes have no use here", help)
                }
            },
            Expr::Ident(name) => {
                let name = name.clone();
                self.name(&name, id)
            }
            Expr::Select(select) => self.select(select, id),
            Expr::Call(_) => self.call(expr),
            Expr::List(list) => {
                let kinds: Vec<Type> = list.elements.iter_mut().map(|element| self.part(element)).collect();
                let texts = !kinds.is_empty() && kinds.iter().all(|kind| *kind == Type::Text);
                if texts { Type::Texts } else { Type::List }
            }
            Expr::Map(map) => {
                for entry in &mut map.entries {
                    let id = entry.id;
                    let EntryExpr::MapEntry(entry) = &mut entry.expr else { continue };
                    let key = self.part(&mut entry.key);
                    if !key.may_be(Type::Text) {
                        self.fault(Code::EXPRESSION_TYPE, id, "names of an object are texts", None);
                    }
                    self.part(&mut entry.value);
                }
                Type::Object
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, id),
            Expr::Struct(_) => {
                let help = Some("write an object: {'name': value}".to_owned());
                self.fault(Code::EXPRESSION, id, "there are no types to make here", help)
            }
            Expr::Unspecified => self.fault(Code::EXPRESSION, id, "something is missing here", None),
        }
    }

    fn name(&mut self, name: &str, id: u64) -> Type {
        if let Some((_, kind)) = self.bound.iter().rev().find(|(bound, _)| bound == name) {
            return *kind;
        }
        let known = self.variables();
        let Some(variable) = known.iter().find(|known| **known == name) else {
            let locals: Vec<&str> = self.bound.iter().map(|(name, _)| name.as_str()).collect();
            let known = known.iter().copied().chain(locals.into_iter().filter(|name| !name.starts_with('@')));
            let help = match (name, self.place) {
                ("body", Place::Condition) => Some(
                    "conditions are decided before the body comes: go by `request`, `route` or `claims`"
                        .to_owned(),
                ),
                ("response", _) => {
                    Some("there is no response yet: it is for mappings of responses".to_owned())
                }
                _ => did_you_mean(name, known),
            };
            return self.fault(
                Code::EXPRESSION_NAME,
                id,
                format!("variable `{name}` is not known here"),
                help,
            );
        };
        self.constant = false;
        match *variable {
            "body" => {
                self.uses.live = true;
                Type::Any
            }
            "response" => {
                self.uses.live = true;
                Type::Variable(variable)
            }
            variable => {
                self.uses.claims |= variable == "claims";
                Type::Variable(variable)
            }
        }
    }

    fn select(&mut self, select: &mut SelectExpr, id: u64) -> Type {
        let of = self.part(&mut select.operand);
        let kind = self.field_of(of, &select.field, id);
        if select.test { Type::Bool } else { kind }
    }

    /// The type of `of.name`, or `of['name']`.
    fn field_of(&mut self, of: Type, name: &str, id: u64) -> Type {
        match of {
            Type::Any | Type::Object => Type::Any,
            Type::Lookup => {
                if is_hearsay(name) {
                    let help = "go by `claims`, `request.ip` or `request.secure`, which the gateway itself found out";
                    let message = format!("header `{name}` is the caller's own word");
                    return self.fault(Code::EXPRESSION_NAME, id, message, Some(help.to_owned()));
                }
                Type::Text
            }
            Type::Variable(variable) => {
                let known = names(variable);
                if !known.contains(&name) {
                    let help = did_you_mean(name, known.iter().copied());
                    let message = format!("`{variable}` has no `{name}`");
                    return self.fault(Code::EXPRESSION_NAME, id, message, help);
                }
                self.uses.headers |= (variable, name) == ("request", "headers");
                self.uses.query |= (variable, name) == ("request", "query");
                self.uses.live |= match variable {
                    "request" => matches!(name, "ip" | "secure" | "query"),
                    "claims" => name != "role",
                    _ => true,
                };
                field(variable, name)
            }
            other => {
                let message = format!("{} has no field `{name}`", other.words());
                self.fault(Code::EXPRESSION_TYPE, id, message, None)
            }
        }
    }

    fn call(&mut self, expr: &mut IdedExpr) -> Type {
        let id = expr.id;
        let Expr::Call(call) = &mut expr.expr else { return Type::Any };
        match call.func_name.as_str() {
            operators::INDEX => self.index(call, id),
            "matches" => self.matches(call, id),
            _ if call.target.is_some() => self.method(call, id),
            name if name.starts_with(|first: char| first.is_ascii_alphabetic()) => self.function(call, id),
            _ => self.operator(call, id),
        }
    }

    fn operator(&mut self, call: &mut CallExpr, id: u64) -> Type {
        let kinds: Vec<Type> = call.args.iter_mut().map(|arg| self.part(arg)).collect();
        let places: Vec<u64> = call.args.iter().map(|arg| arg.id).collect();
        let name = call.func_name.clone();
        let (first, second) =
            (kinds.first().copied().unwrap_or(Type::Any), kinds.get(1).copied().unwrap_or(Type::Any));
        let kind = match name.as_str() {
            operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT => {
                for (kind, place) in kinds.iter().zip(places) {
                    self.must_be_bool(*kind, place);
                }
                Type::Bool
            }
            operators::CONDITIONAL => {
                self.must_be_bool(first, places[0]);
                second.either(kinds.get(2).copied().unwrap_or(Type::Any))
            }
            operators::EQUALS | operators::NOT_EQUALS => {
                if first.is_whole() || second.is_whole() {
                    let help = "compare their fields, or ask with `in`, `exists` or `size`";
                    self.fault(
                        Code::EXPRESSION_TYPE,
                        id,
                        "lists and objects are not compared",
                        Some(help.to_owned()),
                    );
                } else if !first.may_equal(second) {
                    let message = format!("{} never equals {}", first.words(), second.words());
                    self.fault(Code::EXPRESSION_TYPE, id, message, None);
                }
                Type::Bool
            }
            operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS => {
                let fit = |kind: Type| kind == Type::Any || kind == Type::Text || kind.is_number();
                if !fit(first) || !fit(second) || !first.may_equal(second) {
                    self.do_not_go(&name, first, second, id);
                }
                Type::Bool
            }
            operators::IN => {
                if !(second.may_be(Type::List) || matches!(second, Type::Object | Type::Lookup)) {
                    let help = Some("`in` asks a list for an item, or an object for a name".to_owned());
                    let message = format!("{} holds nothing", second.words());
                    self.fault(Code::EXPRESSION_TYPE, id, message, help);
                } else if first.is_whole() {
                    self.fault(Code::EXPRESSION_TYPE, id, "lists and objects are not compared", None);
                } else if !first.may_be(Type::Text) && second != Type::List && second != Type::Any {
                    let message = format!("{} is never in it: it holds texts", first.words());
                    self.fault(Code::EXPRESSION_TYPE, id, message, None);
                }
                Type::Bool
            }
            operators::ADD => {
                let lists = first.may_be(Type::List) && second.may_be(Type::List);
                let fit = |kind: Type| kind == Type::Any || kind == Type::Text || kind.is_number();
                if !lists
                    && !(fit(first)
                        && fit(second)
                        && (first.either(second) != Type::Any || first == Type::Any || second == Type::Any))
                {
                    self.do_not_go(&name, first, second, id);
                }
                match (first, second) {
                    (Type::Any, kind) | (kind, Type::Any) => kind,
                    (kind, _) => kind,
                }
            }
            operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO => {
                let fit = |kind: Type| kind == Type::Any || kind.is_number();
                let same = first == second || first == Type::Any || second == Type::Any;
                if !fit(first) || !fit(second) || !same {
                    self.do_not_go(&name, first, second, id);
                }
                if first == Type::Any { second } else { first }
            }
            operators::NEGATE => {
                if !matches!(first, Type::Any | Type::Int | Type::Double) {
                    let message = format!("{} has no negative", first.words());
                    self.fault(Code::EXPRESSION_TYPE, id, message, None);
                }
                first
            }
            operators::NOT_STRICTLY_FALSE => Type::Bool,
            other => {
                let message = format!("`{}` is not known here", other.trim_matches(['_', '@']));
                self.fault(Code::EXPRESSION_NAME, id, message, None)
            }
        };
        self.meter(call);
        kind
    }

    /// Replaces an operator that the meter must see.
    fn meter(&self, call: &mut CallExpr) {
        let Some((_, metered, always)) = METERED.iter().find(|(operator, ..)| *operator == call.func_name)
        else {
            return;
        };
        // The evaluator knows how macros gather their results by the shape of it.
        let gathers = matches!(call.args.first().map(|arg| &arg.expr), Some(Expr::Ident(name)) if name.starts_with('@'));
        // A list that is written out is as long as it is.
        let listed = call.func_name == operators::IN && matches!(call.args[1].expr, Expr::List(_));
        if !gathers && (self.nesting > 0 || *always && !listed) {
            call.func_name = (*metered).to_owned();
        }
    }

    fn must_be_bool(&mut self, kind: Type, id: u64) {
        if !kind.may_be(Type::Bool) {
            let message = format!("true or false is needed here, and this is {}", kind.words());
            self.fault(Code::EXPRESSION_TYPE, id, message, None);
        }
    }

    fn do_not_go(&mut self, operator: &str, first: Type, second: Type, id: u64) {
        let sign = operator.trim_matches('_');
        let help = (first.is_number() && second.is_number()
            || first == Type::Text && second.is_number()
            || second == Type::Text && first.is_number())
        .then(|| "convert one: `string(…)`, `int(…)`, `double(…)`".to_owned());
        let message = format!("`{sign}` does not take {} and {}", first.words(), second.words());
        self.fault(Code::EXPRESSION_TYPE, id, message, help);
    }

    fn index(&mut self, call: &mut CallExpr, id: u64) -> Type {
        let [of, by] = &mut call.args[..] else { return Type::Any };
        let (of_kind, by_kind) = (self.part(of), self.part(by));
        if let Expr::Literal(LiteralValue::String(name)) = &by.expr {
            let name = name.inner().to_owned();
            return match of_kind {
                Type::List | Type::Texts => {
                    let message = "a list is asked by number".to_owned();
                    self.fault(Code::EXPRESSION_TYPE, by.id, message, None)
                }
                of => self.field_of(of, &name, by.id),
            };
        }
        match of_kind {
            Type::Any | Type::Object => Type::Any,
            Type::Texts | Type::List if by_kind.may_be(Type::Int) || by_kind == Type::UInt => {
                if of_kind == Type::Texts { Type::Text } else { Type::Any }
            }
            Type::Lookup if by_kind.may_be(Type::Text) => Type::Text,
            Type::Variable(variable) => {
                let help = Some(format!("name the field: `{variable}.…`"));
                self.fault(
                    Code::EXPRESSION_TYPE,
                    id,
                    format!("a field of `{variable}` is not computed"),
                    help,
                )
            }
            of => {
                let message = format!("{} is not asked by {}", of.words(), by_kind.words());
                self.fault(Code::EXPRESSION_TYPE, id, message, None)
            }
        }
    }

    /// `text.matches('pattern')`: the pattern is compiled here.
    fn matches(&mut self, call: &mut CallExpr, id: u64) -> Type {
        let mut args: Vec<IdedExpr> = call.target.take().map(|target| *target).into_iter().collect();
        args.append(&mut call.args);
        let [subject, pattern] = &mut args[..] else {
            let help = Some("write `text.matches('pattern')`".to_owned());
            return self.fault(Code::EXPRESSION_TYPE, id, "`matches` takes one pattern", help);
        };
        let kind = self.part(subject);
        self.argument("matches", kind, &[Type::Text], subject.id);
        let Expr::Literal(LiteralValue::String(text)) = &pattern.expr else {
            let help = Some("write it out in quotes: only then can it be compiled once".to_owned());
            return self.fault(
                Code::EXPRESSION_COST,
                pattern.id,
                "the pattern of `matches` is not a literal",
                help,
            );
        };
        match regex::RegexBuilder::new(text.inner()).size_limit(PATTERN_SIZE).build() {
            Ok(compiled) => {
                pattern.expr = Expr::Ident(format!("@{}", self.patterns.len()));
                self.patterns.push(Pattern(compiled));
            }
            Err(regex::Error::CompiledTooBig(_)) => {
                let message = "this pattern is too large";
                self.fault(Code::EXPRESSION_COST, pattern.id, message, Some("use smaller counts".to_owned()));
            }
            Err(_) => {
                let help = "syntax: https://docs.rs/regex (RE2, without look-around and back-references)";
                let message = "this is not a pattern";
                self.fault(Code::EXPRESSION, pattern.id, message, Some(help.to_owned()));
            }
        }
        call.func_name = "@matches".to_owned();
        call.args = args;
        Type::Bool
    }

    fn method(&mut self, call: &mut CallExpr, id: u64) -> Type {
        let target = call.target.as_mut().map(|target| (self.part(target), target.id));
        let (of, target_id) = target.unwrap_or((Type::Any, id));
        let kinds: Vec<(Type, u64)> = call.args.iter_mut().map(|arg| (self.part(arg), arg.id)).collect();
        let name = call.func_name.clone();
        let Some((_, takes, wants)) = METHODS.iter().find(|(known, ..)| *known == name) else {
            return self.unknown(&name, id);
        };
        self.argument(&name, of, takes, target_id);
        if kinds.len() != wants.len() {
            let message = format!("`{name}` takes {} here, not {}", count(wants.len()), kinds.len());
            return self.fault(Code::EXPRESSION_TYPE, id, message, None);
        }
        for ((kind, place), wanted) in kinds.into_iter().zip(*wants) {
            self.argument(&name, kind, &[*wanted], place);
        }
        result(&name)
    }

    fn function(&mut self, call: &mut CallExpr, id: u64) -> Type {
        let kinds: Vec<(Type, u64)> = call.args.iter_mut().map(|arg| (self.part(arg), arg.id)).collect();
        let name = call.func_name.clone();
        let Some((_, takes)) = FUNCTIONS.iter().find(|(known, _)| *known == name) else {
            return self.unknown(&name, id);
        };
        let [(kind, place)] = kinds[..] else {
            let message = format!("`{name}` takes one argument, not {}", kinds.len());
            return self.fault(Code::EXPRESSION_TYPE, id, message, None);
        };
        self.argument(&name, kind, takes, place);
        result(&name)
    }

    fn unknown(&mut self, name: &str, id: u64) -> Type {
        if MACROS.contains(&name) {
            let help = Some(match name {
                "has" => "write `has(claims.role)`: a field of something".to_owned(),
                _ => format!("write `list.{name}(item, …)`"),
            });
            return self.fault(Code::EXPRESSION, id, format!("`{name}` is not written like this"), help);
        }
        let known = METHODS
            .iter()
            .map(|(name, ..)| *name)
            .chain(FUNCTIONS.iter().map(|(name, _)| *name))
            .chain(MACROS);
        let mut known: Vec<&str> = known.collect();
        known.sort_unstable();
        known.dedup();
        let help = crate::diag::nearest(name, known.iter().copied())
            .map(|near| format!("did you mean `{near}`?"))
            .or_else(|| Some(format!("known: {}", known.join(", "))));
        self.fault(Code::EXPRESSION_NAME, id, format!("function `{name}` is not known"), help)
    }

    fn argument(&mut self, name: &str, kind: Type, wanted: &[Type], id: u64) {
        if !wanted.iter().any(|wanted| kind.may_be(*wanted)) {
            let message = format!("`{name}` does not take {}", kind.words());
            self.fault(Code::EXPRESSION_TYPE, id, message, None);
        }
    }

    fn comprehension(&mut self, macro_: &mut ComprehensionExpr, id: u64) -> Type {
        let over = self.part(&mut macro_.iter_range);
        let item = match over {
            Type::Texts | Type::Object => Type::Text,
            Type::Any | Type::List => Type::Any,
            other => {
                let message = format!("{} has no items to go through", other.words());
                self.fault(Code::EXPRESSION_TYPE, macro_.iter_range.id, message, None)
            }
        };
        if self.nesting == MAX_NESTING {
            let help = Some("go through one list in another at most".to_owned());
            return self.fault(Code::EXPRESSION_COST, id, "macros stand too deep in one another", help);
        }
        let start = self.part(&mut macro_.accu_init);
        self.nesting += 1;
        self.bound.push((macro_.accu_var.clone(), start));
        self.part(&mut macro_.loop_cond);
        self.bound.push((macro_.iter_var.clone(), item));
        self.part(&mut macro_.loop_step);
        self.bound.pop();
        self.nesting -= 1;
        let result = self.part(&mut macro_.result);
        self.bound.pop();
        result
    }
}

fn count(arguments: usize) -> &'static str {
    if arguments == 0 { "no argument" } else { "one argument" }
}
