//! Finding a method and the fields that a route's parameters take.

use super::{At, Problem};
use crate::diag::{Code, did_you_mean};
use crate::grpc::bind::{FieldPath, NoField};
use crate::grpc::wire::api::{HttpRule, http_rule::Pattern};
use http::Method;
use prost::Message as _;
use prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor, MethodDescriptor, Value};

/// A parameter's way into a field: texts around it for `{id=shelves/*}`.
#[derive(Debug, Clone)]
pub(super) struct Variable {
    pub(super) field: FieldPath,
    pub(super) parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    /// Index into the route's parameters.
    Param(usize),
}

/// No such method.
pub(super) fn unknown(message: String, help: Option<String>) -> Problem {
    Problem { code: Code::UNKNOWN_METHOD, at: At::Method, message, help }
}

/// Finds `package.Service/Method`.
pub(super) fn method(pool: &DescriptorPool, name: &str) -> Result<MethodDescriptor, Problem> {
    let Some((service_name, method_name)) = name.split_once('/') else {
        let help = "write it as `package.Service/Method`".to_owned();
        return Err(unknown(format!("`{name}` is no name of a method"), Some(help)));
    };
    let Some(service) = pool.get_service_by_name(service_name) else {
        let names: Vec<String> = pool.services().map(|service| service.full_name().to_owned()).collect();
        let help =
            did_you_mean(service_name, names.iter().map(String::as_str)).or_else(|| match names.is_empty() {
                true => Some("the descriptors have no service at all".to_owned()),
                false => Some(format!("there is {}", names.join(", "))),
            });
        return Err(unknown(format!("the descriptors have no service `{service_name}`"), help));
    };
    service.methods().find(|method| method.name() == method_name).ok_or_else(|| {
        let names: Vec<String> = service.methods().map(|method| method.name().to_owned()).collect();
        let help = did_you_mean(method_name, names.iter().map(String::as_str))
            .or_else(|| Some(format!("it has {}", names.join(", "))));
        unknown(format!("`{service_name}` has no method `{method_name}`"), help)
    })
}

/// The method's rule for an HTTP method with so many variables, and its variables.
pub(super) fn rule(
    method: &MethodDescriptor,
    http: &Method,
    params: usize,
) -> Option<(HttpRule, Vec<Template>)> {
    let extension = method.parent_pool().get_extension_by_name("google.api.http")?;
    let options = method.options();
    if !options.has_extension(&extension) {
        return None;
    }
    let value = options.get_extension(&extension).into_owned();
    let Value::Message(message) = value else { return None };
    let first = HttpRule::decode(message.encode_to_vec().as_slice()).ok()?;
    let others = first.additional_bindings.clone();
    std::iter::once(first).chain(others).find_map(|rule| {
        let (of, template) = match rule.pattern.as_ref()? {
            Pattern::Get(path) => ("GET", path),
            Pattern::Put(path) => ("PUT", path),
            Pattern::Post(path) => ("POST", path),
            Pattern::Delete(path) => ("DELETE", path),
            Pattern::Patch(path) => ("PATCH", path),
            Pattern::Custom(custom) => (custom.kind.as_str(), &custom.path),
        };
        let variables = templates(template);
        let taken: usize = variables.iter().map(Template::params).sum();
        (of == http.as_str() && taken == params).then_some((rule, variables))
    })
}

/// A variable of a rule's path: `{field}` or `{field=text/*}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    field: String,
    /// Segments; none stands for what a parameter of the route takes.
    segments: Vec<Option<String>>,
}

impl Template {
    fn params(&self) -> usize {
        self.segments.iter().filter(|segment| segment.is_none()).count()
    }
}

fn templates(path: &str) -> Vec<Template> {
    let inside = path.split('{').skip(1).filter_map(|part| part.split('}').next());
    inside
        .map(|variable| {
            let (field, pattern) = variable.split_once('=').unwrap_or((variable, "*"));
            let segment = |text: &str| (!matches!(text, "*" | "**")).then(|| text.to_owned());
            Template { field: field.to_owned(), segments: pattern.split('/').map(segment).collect() }
        })
        .collect()
}

/// Parameters take the rule's fields: those of their names where all are plain variables of these names, else by place.
pub(super) fn by_rule(
    input: &MessageDescriptor,
    templates: &[Template],
    params: &[String],
    problems: &mut Vec<Problem>,
) -> Vec<Variable> {
    let named =
        templates.iter().all(|template| template.segments == [None] && params.contains(&template.field));
    let mut next = 0;
    templates
        .iter()
        .filter_map(|template| {
            let mut parts = Vec::new();
            for (at, segment) in template.segments.iter().enumerate() {
                let slash = if at > 0 { "/" } else { "" };
                match segment {
                    Some(text) => parts.push(Part::Text(format!("{slash}{text}"))),
                    None => {
                        if at > 0 {
                            parts.push(Part::Text(slash.to_owned()));
                        }
                        let own = params.iter().position(|param| *param == template.field);
                        parts.push(Part::Param(own.filter(|_| named).unwrap_or(next)));
                        next += 1;
                    }
                }
            }
            match FieldPath::find(input, &template.field) {
                Ok(field) if !field.is_list() => Some(Variable { field, parts }),
                _ => {
                    let message = format!(
                        "the method's own rule binds `{}`, which is no field of `{}` that text can be read into",
                        template.field,
                        input.full_name()
                    );
                    problems.push(Problem { code: Code::BINDING, at: At::Method, message, help: None });
                    None
                }
            }
        })
        .collect()
}

/// Parameters take the fields of their names.
pub(super) fn by_name(
    input: &MessageDescriptor,
    params: &[String],
    problems: &mut Vec<Problem>,
) -> Vec<Variable> {
    let mut bind = |(index, name): (usize, &String)| {
        let message = match FieldPath::find(input, name) {
            Ok(field) if !field.is_list() => {
                return Some(Variable { field, parts: vec![Part::Param(index)] });
            }
            Ok(_) => (format!("`{name}` takes one value, and the field of this name is a list"), None),
            Err(NoField::NotText { name, what }) => {
                (format!("`{name}` takes a text, and the field of this name is {what}"), None)
            }
            Err(NoField::Unknown { message, name, help }) => {
                let fields: Vec<String> = input.fields().map(|field| field.name().to_owned()).collect();
                let help = help.or_else(|| match fields.is_empty() {
                    true => Some("the message has no field at all".to_owned()),
                    false => Some(format!("its fields are {}", fields.join(", "))),
                });
                (
                    format!(
                        "parameter `{name}` of the path takes no field: `{message}` has none of this name"
                    ),
                    help,
                )
            }
        };
        let (message, help) = message;
        problems.push(Problem { code: Code::BINDING, at: At::Pattern, message, help });
        None
    };
    params.iter().enumerate().filter_map(&mut bind).collect()
}

pub(super) fn field(message: &MessageDescriptor, name: &str, at: At) -> Result<FieldDescriptor, Problem> {
    let found = message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name));
    found.ok_or_else(|| {
        let names: Vec<String> = message.fields().map(|field| field.name().to_owned()).collect();
        let help = did_you_mean(name, names.iter().map(String::as_str))
            .or_else(|| Some("write `*` for the whole message".to_owned()));
        let message = format!("`{}` has no field `{name}`", message.full_name());
        Problem { code: Code::BINDING, at, message, help }
    })
}
