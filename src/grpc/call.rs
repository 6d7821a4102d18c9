//! A route bound to a method, as in google.api.http (AIP-127): the path's parameters and the query take fields, the body
//! takes the message or one field.
//!
//! Where the method has a rule for the route's HTTP method with as many variables as the route has parameters, the rule
//! says which fields these are, which field the body is, and which the answer; the path itself is the manifest's.
//! Without one, parameters take the fields of their names, and the body the whole message. What the route says itself
//! goes before either. Where the body takes the whole message, the query takes nothing.

mod document;
mod rule;

use super::bind::{FieldPath, unescape};
use super::frame;
use super::json::{self, Style, push};
use super::wire::api::HttpRule;
use crate::diag::Code;
use crate::error::FieldFault;
use bytes::Bytes;
use http::Method;
use http::uri::PathAndQuery;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
};
use rule::{Part, Variable, by_name, by_rule, field, method, rule, unknown};
use std::borrow::Cow;
use url::form_urlencoded;

/// What a route wants.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// `package.Service/Method`.
    pub method: String,
    /// The route's HTTP method; none for `ANY`.
    pub http: Option<Method>,
    /// Names of the path's parameters, in order.
    pub params: Vec<String>,
    /// Field that takes the body, or `*`.
    pub body: Option<String>,
    /// Field that is answered, or `*`.
    pub response_body: Option<String>,
}

/// Why a route and a method do not go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Code of the fault.
    pub code: Code,
    /// Which part of the route it is about.
    pub at: At,
    /// What is wrong.
    pub message: String,
    /// A way out.
    pub help: Option<String>,
}

/// A part of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The method's name.
    Method,
    /// The pattern.
    Pattern,
    /// `body`.
    Body,
    /// `response_body`.
    ResponseBody,
}

/// What takes a request's body.
#[derive(Debug, Clone)]
enum BodyRule {
    Nothing,
    Whole,
    Field(FieldDescriptor),
}

/// A route bound to a method.
#[derive(Debug, Clone)]
pub struct Call {
    path: PathAndQuery,
    method: MethodDescriptor,
    input: MessageDescriptor,
    output: MessageDescriptor,
    takes_stream: bool,
    gives_stream: bool,
    variables: Vec<Variable>,
    body: BodyRule,
    response_body: Option<FieldDescriptor>,
}

impl Call {
    /// Binds a route to a method.
    ///
    /// # Errors
    /// Every reason why they do not go together.
    pub fn bind(pool: &DescriptorPool, wanted: &Wanted) -> Result<Call, Vec<Problem>> {
        let method = method(pool, &wanted.method).map_err(|problem| vec![problem])?;
        let (input, output) = (method.input(), method.output());
        let rule = wanted.http.as_ref().and_then(|http| rule(&method, http, wanted.params.len()));
        let mut problems = Vec::new();
        let variables = match &rule {
            Some((_, variables)) => by_rule(&input, variables, &wanted.params, &mut problems),
            None => by_name(&input, &wanted.params, &mut problems),
        };
        let has_body = !matches!(wanted.http, Some(Method::GET | Method::HEAD | Method::DELETE));
        let takes_stream = method.is_client_streaming();
        let ruled = |field: fn(&HttpRule) -> &String| rule.as_ref().map(|(rule, _)| field(rule).as_str());
        let body = wanted.body.as_deref().or_else(|| ruled(|rule| &rule.body)).unwrap_or(match has_body {
            true => "*",
            false => "",
        });
        let body = match body {
            "" => BodyRule::Nothing,
            "*" => BodyRule::Whole,
            name => match field(&input, name, At::Body) {
                Ok(field) => BodyRule::Field(field),
                Err(problem) => {
                    problems.push(problem);
                    BodyRule::Nothing
                }
            },
        };
        if wanted.body.is_some() && !has_body {
            let message = "a GET or DELETE has no body to bind".to_owned();
            let help = Some("remove `body`: its query takes the fields".to_owned());
            problems.push(Problem { code: Code::BINDING, at: At::Body, message, help });
        }
        let response_body =
            match wanted.response_body.as_deref().or_else(|| ruled(|rule| &rule.response_body)) {
                None | Some("" | "*") => None,
                Some(name) => match field(&output, name, At::ResponseBody) {
                    Ok(field) => Some(field),
                    Err(problem) => {
                        problems.push(problem);
                        None
                    }
                },
            };
        if takes_stream && (!has_body || !matches!(body, BodyRule::Whole)) {
            let message =
                format!("`{}` takes a stream of messages, which only a whole body can bring", wanted.method);
            let help = Some("use POST, PUT or PATCH, and leave `body` at `*`".to_owned());
            problems.push(Problem { code: Code::METHOD_KIND, at: At::Method, message, help });
        }
        let path =
            PathAndQuery::try_from(format!("/{}/{}", method.parent_service().full_name(), method.name()));
        match path {
            Ok(path) if problems.is_empty() => Ok(Call {
                path,
                takes_stream,
                gives_stream: method.is_server_streaming(),
                method,
                input,
                output,
                variables,
                body,
                response_body,
            }),
            Ok(_) => Err(problems),
            Err(_) => Err(vec![unknown(format!("`{}` is no name of a method", wanted.method), None)]),
        }
    }

    /// Path of the call: `/package.Service/Method`.
    pub fn path(&self) -> &PathAndQuery {
        &self.path
    }

    /// Whether the method takes many messages.
    pub fn takes_stream(&self) -> bool {
        self.takes_stream
    }

    /// Whether the method answers with many messages.
    pub fn gives_stream(&self) -> bool {
        self.gives_stream
    }

    /// Whether a request's body is read.
    pub fn reads_body(&self) -> bool {
        !matches!(self.body, BodyRule::Nothing)
    }

    /// Prefix of fields that the request's body takes, such as `document`: where the service speaks of them by their
    /// place in the message, callers know them by their place in the body.
    pub fn body_field(&self) -> Option<&str> {
        match &self.body {
            BodyRule::Field(field) => Some(field.name()),
            BodyRule::Nothing | BodyRule::Whole => None,
        }
    }

    /// What path and query say, which every message of the request gets.
    ///
    /// `param` gives the path's parameters, escaped.
    ///
    /// # Errors
    /// A fault for each parameter that does not fit.
    pub fn address<'v>(
        &self,
        param: impl Fn(usize) -> Option<&'v str>,
        query: Option<&str>,
    ) -> Result<Address, Vec<FieldFault>> {
        let mut address = Address { base: DynamicMessage::new(self.input.clone()), texts: Vec::new() };
        let mut faults = Vec::new();
        for variable in &self.variables {
            let mut text = String::new();
            let mut name = 0;
            for part in &variable.parts {
                match part {
                    Part::Text(known) => text.push_str(known),
                    Part::Param(index) => {
                        name = *index;
                        match param(*index).and_then(unescape) {
                            Some(value) => text.push_str(&value),
                            None => faults
                                .push(parameter(format!("path parameter {}", index + 1), "must be UTF-8")),
                        }
                    }
                }
            }
            match variable.field.set(&mut address.base, &text) {
                Ok(()) => address.texts.push(text),
                Err(fault) => faults.push(parameter(format!("path parameter {}", name + 1), &fault.en)),
            }
        }
        let mut given: Vec<FieldPath> = Vec::new();
        for (name, text) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if CREDENTIALS.contains(&&*name) {
                continue;
            }
            match self.query(&name, &text, &given, &mut address.base) {
                Ok(field) => given.push(field),
                Err(why) => faults.push(parameter(format!("query parameter `{name}`"), &why)),
            }
            if faults.len() >= 20 {
                break;
            }
        }
        if faults.is_empty() { Ok(address) } else { Err(faults) }
    }

    fn query(
        &self,
        name: &str,
        text: &str,
        given: &[FieldPath],
        base: &mut DynamicMessage,
    ) -> Result<FieldPath, Cow<'static, str>> {
        if matches!(self.body, BodyRule::Whole) {
            return Err("is not taken here: send it in the body".into());
        }
        let field = FieldPath::find(&self.input, name).map_err(|_| "is not known here")?;
        if let BodyRule::Field(body) = &self.body
            && field.is_within(body)
        {
            return Err("is not taken here: it is part of the body".into());
        }
        if self.variables.iter().any(|variable| variable.field.same(&field)) {
            return Err("is not taken here: the path says it".into());
        }
        if !field.is_list() && given.iter().any(|known| known.same(&field)) {
            return Err("is given twice".into());
        }
        field.set(base, text).map_err(|fault| fault.en)?;
        Ok(field)
    }

    /// The message of a body, or of one of many in a body.
    ///
    /// # Errors
    /// Every fault of it.
    pub fn message(&self, address: &Address, body: &[u8]) -> Result<DynamicMessage, Vec<FieldFault>> {
        let blank = body.trim_ascii().is_empty();
        match &self.body {
            // A call without fields needs no `{}`.
            BodyRule::Whole if !blank => {
                let mut message = json::read(&self.input, body)?;
                // What the path says goes before what the body says.
                for (variable, text) in self.variables.iter().zip(&address.texts) {
                    variable.field.set(&mut message, text).map_err(|fault| vec![fault])?;
                }
                Ok(message)
            }
            BodyRule::Field(field) if !blank => {
                let value = json::read_field(field, body)?;
                let mut message = address.base.clone();
                message.set_field(field, value);
                // The path may say something of the field that the body takes.
                for (variable, text) in self.variables.iter().zip(&address.texts) {
                    variable.field.set(&mut message, text).map_err(|fault| vec![fault])?;
                }
                Ok(message)
            }
            _ => Ok(address.base.clone()),
        }
    }

    /// The message of a body, as it is sent.
    ///
    /// # Errors
    /// Every fault of the body.
    pub fn frame(&self, address: &Address, body: &[u8]) -> Result<Bytes, Vec<FieldFault>> {
        Ok(frame::encode(&self.message(address, body)?))
    }

    /// Appends an answer as JSON.
    ///
    /// # Errors
    /// Where the service's message is not what the descriptors say, or has no JSON form.
    pub fn answer(&self, message: Bytes, style: &Style, out: &mut Vec<u8>) -> Result<(), String> {
        let message =
            DynamicMessage::decode(self.output.clone(), message).map_err(|error| error.to_string())?;
        style.write(&message, self.response_body.as_ref(), out).map_err(|error| error.to_string())
    }

    /// JSON Pointer of a field as a service names it (`tags[1].name`), in the words of the caller's body.
    pub fn pointer(&self, field: &str, proto_names: bool) -> String {
        let mut at = String::new();
        let mut inside = Some(self.input.clone());
        let mut parts = field.split('.').filter(|part| !part.is_empty()).peekable();
        if let (Some(body), Some(first)) = (self.body_field(), parts.peek())
            && *first == body
        {
            parts.next();
            inside = self.input.get_field_by_name(body).and_then(|field| inner(&field));
        }
        for part in parts {
            let (name, index) = part.split_once('[').unwrap_or((part, ""));
            let known = inside.and_then(|inside| {
                inside.get_field_by_name(name).or_else(|| inside.get_field_by_json_name(name))
            });
            push(
                &mut at,
                match &known {
                    Some(field) if proto_names => field.name(),
                    Some(field) => field.json_name(),
                    None => name,
                },
            );
            let index = index.trim_end_matches(']').trim_matches('"');
            if !index.is_empty() {
                push(&mut at, index);
            }
            inside = known.and_then(|field| inner(&field));
        }
        at
    }
}

/// What path and query say.
#[derive(Debug, Clone)]
pub struct Address {
    /// The message with it.
    base: DynamicMessage,
    /// What each variable of the path says.
    texts: Vec<String>,
}

/// Query parameters that the gateway itself reads.
const CREDENTIALS: [&str; 3] = ["token", "access_token", "ticket"];

fn inner(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    match field.kind() {
        Kind::Message(inner) => Some(inner),
        _ => None,
    }
}

fn parameter(what: String, why: &str) -> FieldFault {
    FieldFault::new("", "parameter", format!("{what} {why}"), format!("{what}：{why}"))
}

#[cfg(test)]
mod tests;
