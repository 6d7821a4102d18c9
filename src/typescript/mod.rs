//! A typed TypeScript client of an API, written from its OpenAPI document: one file, nothing needed at run time.
//!
//! The types are the document's (`types`), the methods its operations (`operation`), grouped as their ids are:
//! `auth.login` is `client.auth.login(…)`. What a method does at run time is the same for all of them and is written by
//! hand in `runtime.ts`; the file carries it, with one row a method. The same document always gives the same file.

mod events;
mod names;
mod operation;
mod types;

use operation::{Answer, Operation};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use types::Types;

/// What every client does: calls, streams, sockets, tokens.
const RUNTIME: &str = include_str!("runtime.ts");

/// Why no client can be written.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is not an OpenAPI document of version 3.
    #[error("this is no OpenAPI document of version 3: it has no `openapi: 3.x` with `paths`")]
    NotOpenApi,
    /// It has no operation that a client could call.
    #[error("the document describes no operation")]
    Empty,
}

/// Writes the client of an OpenAPI document (3.0, 3.1 or 3.2).
///
/// # Errors
/// If it is none, or describes no operation.
pub fn client(document: &Value) -> Result<String, Unusable> {
    let version = document["openapi"].as_str().unwrap_or_default();
    if !version.starts_with("3.") || !document["paths"].is_object() {
        return Err(Unusable::NotOpenApi);
    }
    let mut types = Types::new(document);
    let operations = operation::all(document, &mut types);
    if operations.is_empty() {
        return Err(Unusable::Empty);
    }
    let info = |key: &str| document["info"][key].as_str().unwrap_or_default();
    let title = format!("{} {}", info("title"), info("version"));
    let title = names::comment(title.trim());
    let mut out =
        format!("// {title}: a client, written by `voicegate client ts`. Do not edit; write it again.\n\n");
    out.push_str(&types.declarations());
    out.push_str(&interface(&operations, &title));
    out.push_str(&table(&operations));
    out.push_str(RUNTIME);
    Ok(out)
}

/// Methods by the groups they are in.
#[derive(Default)]
struct Group<'o> {
    methods: Vec<&'o Operation>,
    groups: BTreeMap<&'o str, Group<'o>>,
}

/// `export interface Client`.
fn interface(operations: &[Operation], title: &str) -> String {
    let mut root = Group::default();
    for operation in operations {
        let mut at = &mut root;
        for name in operation.groups() {
            at = at.groups.entry(name).or_default();
        }
        at.methods.push(operation);
    }
    let mut out = format!("/** {title} */\nexport interface Client {{\n");
    members(&root, 1, &mut out);
    out.push_str("}\n\n");
    out
}

fn members(group: &Group<'_>, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    for operation in &group.methods {
        let _ = writeln!(out, "{indent}/** {} */", operation.comment());
        let _ = writeln!(out, "{indent}{}{};", operation.method(), operation.signature());
    }
    for (name, group) in &group.groups {
        let _ = writeln!(out, "{indent}readonly {name}: {{");
        members(group, depth + 1, out);
        let _ = writeln!(out, "{indent}}};");
    }
}

/// One row a method: what is sent where, and how.
fn table(operations: &[Operation]) -> String {
    let mut out = "const OPERATIONS: Record<string, Op> = {\n".to_owned();
    for operation in operations {
        let _ = writeln!(out, "  {}: {},", names::string(&operation.name), operation.row());
    }
    out.push_str("};\n");
    let named = |wanted: &str| operations.iter().find(|operation| operation.is(wanted));
    for (constant, wanted) in [("REFRESH", "auth.refresh"), ("TICKET", "auth.ticket")] {
        let of = match named(wanted).filter(|operation| operation.answer != Answer::Nothing) {
            Some(operation) => format!("OPERATIONS[{}]", names::string(&operation.name)),
            None => "undefined as Op | undefined".to_owned(),
        };
        let _ = writeln!(out, "const {constant} = {of};");
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests;
