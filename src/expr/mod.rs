//! Expressions: CEL (Common Expression Language) in a manifest, such as `when: "claims.role != 'admin'"`.
//!
//! An expression is read once, at check time ([`Expression::check`]): names that nothing has, operators on types that
//! they do not take, and conditions that are no condition are faults at their place in the manifest. What can only be
//! known of a request (a field of its body) is found out when it comes, as [`Failed`].
//!
//! **Variables.** `route.{method,template,host,version,params}`, `request.{method,path,query,headers,ip,secure}`,
//! `claims.{user_id,tenant_id,role,scopes,channel,proof}` (without an identity none of these is there:
//! `has(claims.role)`), in mappings `body`, in those of responses also `response.{status,headers}`. They are views:
//! nothing is built or copied that an expression does not touch. Headers by which callers could claim to be somebody
//! (`X-User-*`, `X-Forwarded-*`) and tokens in the query are not in `request`.
//!
//! **Functions.** `size`, `contains`, `startsWith`, `endsWith`, `matches` (its pattern is a literal, compiled at check
//! time), `lowerAscii`, `upperAscii`, `trim`, `string`, `int`, `double`, and the macros `has`, `all`, `exists`,
//! `exists_one`, `map`, `filter`. Lists and objects are not compared by `==` or `in`: their fields are.
//!
//! **Cost.** No request makes an expression expensive: its text, depth and number of parts are bounded, macros stand in
//! one another at most once, and whatever grows with the request (items gone through, text searched or joined) is
//! counted while it runs and ends it in time (some ten
//! milliseconds). The evaluator is the `cel` crate's; a panic in it is an error here.

mod functions;
mod json;
mod scope;
mod types;
mod typing;

pub use scope::{Scope, is_hearsay};

use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::manifest::Spanned;
use cel::common::types::CelBool;
use cel::common::value::Val;
use cel::{Context, ExecutionError};
use scope::{Pattern, Variables};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Parts evaluated for one expression at most, however its request looks.
const BUDGET: u64 = 200_000;
/// Bytes of an expression's text.
const MAX_TEXT: usize = 2048;
/// Parts of an expression, once its macros are written out.
const MAX_PARTS: u64 = 400;
/// Brackets that open, wherever they stand.
const MAX_BRACKETS: usize = 200;
/// Parts within parts, once it is read.
const MAX_DEPTH: usize = 48;
/// Stack of the thread that reads a text: the grammar's code takes 100 KiB and more for brackets in brackets.
const PARSER_STACK: usize = 64 << 20;

/// Where an expression stands: which variables it may use, and what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `when:`: true or false.
    Condition,
    /// A field of a request's body.
    Request,
    /// A field of a response's body, or of an event's.
    Response,
}

/// What of a request an expression looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Uses {
    /// `request.headers`.
    pub headers: bool,
    /// `request.query`.
    pub query: bool,
    /// `claims`.
    pub claims: bool,
    /// Something that only a real request has: nobody can tell offline what it gives.
    pub live: bool,
}

/// An expression that is sound, ready to run.
pub struct Expression {
    text: Box<str>,
    tree: cel::IdedExpr,
    patterns: Box<[Pattern]>,
    /// Items, and pieces of text, that it may go through.
    steps: u64,
    uses: Uses,
}

/// Why an expression gave nothing for a request. Its text names fields and types, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// Something it needs is not there.
    #[error("there is no `{0}`")]
    Missing(String),
    /// Something is of another type than it needs.
    #[error("{0}")]
    Type(String),
    /// It would go through too much.
    #[error("it would cost too much")]
    TooCostly,
    /// Something else, such as a division by zero.
    #[error("{0}")]
    Other(&'static str),
}

impl Failed {
    fn of(error: ExecutionError) -> Self {
        match error {
            ExecutionError::NoSuchKey(name) => Failed::Missing(name.as_str().to_owned()),
            ExecutionError::NoSuchOverload(overload) => Failed::Type(overload.to_string()),
            ExecutionError::UnexpectedType { got, want } => {
                Failed::Type(format!("{got} stands where {want} is needed"))
            }
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
                Failed::Other("it divides by zero")
            }
            ExecutionError::Overflow(..) => Failed::Other("a number grows too large"),
            ExecutionError::IndexOutOfBounds(_) => Failed::Other("a list is shorter than its index"),
            _ => Failed::Other("its values do not go together"),
        }
    }
}

impl Expression {
    /// Is it sound? Reports every fault; `None` if there was an error.
    pub fn check(text: &Spanned<String>, place: Place, out: &mut Diagnostics) -> Option<Self> {
        if text.len() > MAX_TEXT {
            let message = format!("this expression is longer than {MAX_TEXT} bytes");
            out.push(
                Diagnostic::error(Code::EXPRESSION_COST, text.span, message)
                    .help("say it shorter, or in two stages"),
            );
            return None;
        }
        if text.matches(['(', '[', '{']).count() > MAX_BRACKETS {
            let message = format!("this expression has more than {MAX_BRACKETS} brackets");
            out.push(
                Diagnostic::error(Code::EXPRESSION_COST, text.span, message)
                    .help("say it shorter, or in two stages"),
            );
            return None;
        }
        let (tree, source) = match parse(text) {
            Some(Ok(read)) => read,
            Some(Err(errors)) => {
                out.push(typing::syntax_fault(text, &errors));
                return None;
            }
            None => {
                out.push(Diagnostic::error(Code::EXPRESSION, text.span, "this is not an expression"));
                return None;
            }
        };
        let typed = typing::check(tree, &source, text, place, out)?;
        Some(Expression {
            text: text.value.as_str().into(),
            tree: typed.tree,
            patterns: typed.patterns.into(),
            steps: (BUDGET / typed.parts).min(10_000),
            uses: typed.uses,
        })
    }

    /// As written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it looks at.
    pub fn uses(&self) -> Uses {
        self.uses
    }

    /// Whether it is true.
    ///
    /// # Errors
    /// [`Failed`], also where it is neither true nor false.
    pub fn holds(&self, scope: &Scope<'_>) -> Result<bool, Failed> {
        self.run(scope, |value| match value.downcast_ref::<CelBool>() {
            Some(truth) => Ok(*truth.inner()),
            None => Err(Failed::Type(format!("it is {}, and not true or false", value.get_type().name()))),
        })
    }

    /// What it gives, as JSON.
    ///
    /// # Errors
    /// [`Failed`], also where JSON has no such value.
    pub fn value(&self, scope: &Scope<'_>) -> Result<serde_json::Value, Failed> {
        self.run(scope, json::written)
    }

    fn run<T>(
        &self,
        scope: &Scope<'_>,
        finish: impl FnOnce(&dyn Val) -> Result<T, Failed>,
    ) -> Result<T, Failed> {
        functions::begin(self.steps);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let variables = Variables { scope, patterns: &self.patterns };
            let mut context = Context::with_env(functions::env());
            context.set_variable_resolver(&variables);
            let value = cel::Value::resolve_val(&self.tree, &context).map_err(Failed::of)?;
            finish(&*value)
        }));
        // `||` and `exists` pass over errors of one side: what was cut short counts as nothing, whatever it gave.
        if functions::spent() {
            return Err(Failed::TooCostly);
        }
        outcome.unwrap_or(Err(Failed::Other("the evaluator failed")))
    }
}

type Parsed = Result<(cel::IdedExpr, cel::common::ast::SourceInfo), cel::ParseErrors>;

/// Reads a text on a thread with stack enough; `None` where the parser gave up altogether.
fn parse(text: &str) -> Option<Parsed> {
    std::thread::scope(|scope| {
        let read = || {
            let parser = cel::parser::Parser::new().error_recovery_limit(4);
            parser.parse_with_source_info(text)
        };
        let thread = std::thread::Builder::new().stack_size(PARSER_STACK).spawn_scoped(scope, read);
        thread.ok()?.join().ok()
    })
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Expression").field(&self.text).finish()
    }
}

#[cfg(test)]
mod tests;
