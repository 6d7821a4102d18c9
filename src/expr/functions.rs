//! What expressions can call, and the meter that all of it runs on.
//!
//! The standard library's own functions count nothing, so that these stand in their place, under the same names. What
//! costs by the size of its operands charges the meter first: a step is one item of a list, or a KiB of text (128 bytes
//! for a pattern). Operators are the evaluator's; where one can be repeated (in a macro) or makes its operands longer
//! (`+`), the check replaces it by a call to one of these ([`METERED`]).

use cel::common::types::{
    BOOL_TYPE, CelBool, CelDouble, CelInt, CelString, CelUInt, DOUBLE_TYPE, DYN_TYPE, INT_TYPE, LIST_TYPE,
    MAP_TYPE, STRING_TYPE, Type, UINT_TYPE,
};
use cel::common::value::{CowVal, Val};
use cel::{Env, ExecutionError};
use std::cell::Cell;
use std::sync::{Arc, LazyLock};

use super::scope::Pattern;

/// Text that one step goes through.
const TEXT_STEP: usize = 1024;
/// Text that one step of a pattern goes through.
const PATTERN_STEP: usize = 128;

thread_local! {
    /// Steps left to the evaluation under way on this thread, which never waits; below zero, it is over.
    static LEFT: Cell<i64> = const { Cell::new(0) };
}

/// An evaluation begins that may take so many steps.
pub(super) fn begin(steps: u64) {
    LEFT.set(i64::try_from(steps).unwrap_or(i64::MAX));
}

/// Whether the evaluation that last began wanted more.
pub(super) fn spent() -> bool {
    LEFT.get() < 0
}

/// Takes steps, if as many are left.
pub(super) fn take(steps: usize) -> bool {
    let left = LEFT.get().saturating_sub_unsigned(steps as u64);
    LEFT.set(left);
    left >= 0
}

/// [`take`], as an error of the evaluator's.
pub(super) fn charge(steps: usize) -> Result<(), ExecutionError> {
    match take(steps) {
        true => Ok(()),
        false => Err(ExecutionError::InternalError(String::new())),
    }
}

/// Steps that going through a value once takes.
fn weight(value: &dyn Val) -> usize {
    match value.downcast_ref::<CelString>() {
        Some(text) => text.inner().len() / TEXT_STEP,
        None => value.as_sizer().map_or(0, |sizer| usize::try_from(*sizer.size().inner()).unwrap_or(0)),
    }
}

type Args<'b, 'v> = Vec<CowVal<'b, 'v>>;
type Out<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

/// Operators and the functions that stand in their place, with whether it does so everywhere (else in macros only).
pub(super) const METERED: &[(&str, &str, bool)] = &[
    ("_+_", "@add", true),
    ("_==_", "@equal", false),
    ("_!=_", "@unequal", false),
    ("_<_", "@less", false),
    ("_<=_", "@at_most", false),
    ("_>_", "@more", false),
    ("_>=_", "@at_least", false),
    ("@in", "@within", true),
];

/// The environment of every expression.
pub(super) fn env() -> Arc<Env> {
    static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(declared()));
    ENV.clone()
}

fn declared() -> Env {
    let mut env = Env::default().with_optional_support(false);
    let mut global = |name: &str, kinds: &[&Type], run: for<'b, 'v> fn(Args<'b, 'v>) -> Out<'b, 'v>| {
        let id = kinds.iter().map(|kind| kind.name()).fold(name.to_owned(), |id, kind| id + "_" + kind);
        env.add_overload(name, &id, kinds.iter().map(|kind| Type::to_owned(kind)).collect(), run)
            .expect("each stands here once");
    };
    for kind in [&STRING_TYPE, &LIST_TYPE, &MAP_TYPE] {
        global("size", &[kind], size);
    }
    for kind in [&STRING_TYPE, &BOOL_TYPE, &INT_TYPE, &UINT_TYPE, &DOUBLE_TYPE] {
        global("string", &[kind], string);
    }
    for kind in [&STRING_TYPE, &INT_TYPE, &UINT_TYPE, &DOUBLE_TYPE] {
        global("int", &[kind], int);
        global("double", &[kind], double);
    }
    global("@matches", &[&STRING_TYPE, &DYN_TYPE], matches);
    for (_, name, _) in METERED {
        let run: for<'b, 'v> fn(Args<'b, 'v>) -> Out<'b, 'v> = match *name {
            "@add" => add,
            "@equal" => equal,
            "@unequal" => unequal,
            "@less" => less,
            "@at_most" => at_most,
            "@more" => more,
            "@at_least" => at_least,
            _ => within,
        };
        global(name, &[&DYN_TYPE, &DYN_TYPE], run);
    }
    let mut member =
        |name: &str, kind: &Type, others: &[&Type], run: for<'b, 'v> fn(Args<'b, 'v>) -> Out<'b, 'v>| {
            let others = others.iter().map(|kind| Type::to_owned(kind)).collect();
            env.add_member_overload(
                name,
                &format!("{name}_of_{}", kind.name()),
                Type::to_owned(kind),
                others,
                run,
            )
            .expect("each stands here once");
        };
    for kind in [&STRING_TYPE, &LIST_TYPE, &MAP_TYPE] {
        member("size", kind, &[], size);
    }
    member("contains", &STRING_TYPE, &[&STRING_TYPE], contains);
    member("startsWith", &STRING_TYPE, &[&STRING_TYPE], starts_with);
    member("endsWith", &STRING_TYPE, &[&STRING_TYPE], ends_with);
    member("lowerAscii", &STRING_TYPE, &[], lower);
    member("upperAscii", &STRING_TYPE, &[], upper);
    member("trim", &STRING_TYPE, &[], trim);
    env
}

/// The text of an argument, which its overload says it is; charged.
fn text<'a>(args: &'a [CowVal<'_, '_>], at: usize) -> Result<&'a str, ExecutionError> {
    let value = args.get(at).map(|arg| arg.as_ref());
    let text = value.and_then(|value| value.downcast_ref::<CelString>()).ok_or_else(wrong)?;
    charge(1 + text.inner().len() / TEXT_STEP)?;
    Ok(text.inner())
}

fn wrong() -> ExecutionError {
    ExecutionError::InternalError(String::new())
}

fn truth<'b, 'v>(truth: bool) -> Out<'b, 'v> {
    Ok(CowVal::owned(CelBool::from(truth)))
}

fn words<'b, 'v>(text: String) -> Out<'b, 'v> {
    Ok(CowVal::owned(CelString::from(text)))
}

fn size<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let value = args.first().ok_or_else(wrong)?;
    let size = match value.downcast_ref::<CelString>() {
        Some(_) => CelInt::from(text(&args, 0)?.chars().count() as i64),
        None => value.as_sizer().ok_or_else(wrong)?.size(),
    };
    Ok(CowVal::owned(size))
}

fn contains<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    truth(text(&args, 0)?.contains(text(&args, 1)?))
}

fn starts_with<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    truth(text(&args, 0)?.starts_with(text(&args, 1)?))
}

fn ends_with<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    truth(text(&args, 0)?.ends_with(text(&args, 1)?))
}

fn lower<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    words(text(&args, 0)?.to_ascii_lowercase())
}

fn upper<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    words(text(&args, 0)?.to_ascii_uppercase())
}

fn trim<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    words(text(&args, 0)?.trim().to_owned())
}

fn matches<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let subject = text(&args, 0)?;
    charge(subject.len() / PATTERN_STEP)?;
    let pattern = args.get(1).and_then(|arg| arg.downcast_ref::<Pattern>()).ok_or_else(wrong)?;
    truth(pattern.matches(subject))
}

fn string<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let value = args.first().ok_or_else(wrong)?;
    words(if let Some(truth) = value.downcast_ref::<CelBool>() {
        truth.inner().to_string()
    } else if let Some(number) = value.downcast_ref::<CelInt>() {
        number.inner().to_string()
    } else if let Some(number) = value.downcast_ref::<CelUInt>() {
        number.inner().to_string()
    } else if let Some(number) = value.downcast_ref::<CelDouble>() {
        number.inner().to_string()
    } else {
        text(&args, 0)?.to_owned()
    })
}

fn int<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let value = args.first().ok_or_else(wrong)?;
    let number = if let Some(number) = value.downcast_ref::<CelInt>() {
        Some(*number.inner())
    } else if let Some(number) = value.downcast_ref::<CelUInt>() {
        i64::try_from(*number.inner()).ok()
    } else if let Some(number) = value.downcast_ref::<CelDouble>() {
        let number = number.inner().trunc();
        // Beyond this, doubles name no whole number exactly.
        (number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64)
    } else {
        text(&args, 0)?.trim().parse().ok()
    };
    number.map(|number| CowVal::owned(CelInt::from(number))).ok_or_else(|| not_a_number("int"))
}

fn double<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let value = args.first().ok_or_else(wrong)?;
    let number = if let Some(number) = value.downcast_ref::<CelInt>() {
        Some(*number.inner() as f64)
    } else if let Some(number) = value.downcast_ref::<CelUInt>() {
        Some(*number.inner() as f64)
    } else if let Some(number) = value.downcast_ref::<CelDouble>() {
        Some(*number.inner())
    } else {
        text(&args, 0)?.trim().parse().ok().filter(|number: &f64| number.is_finite())
    };
    number.map(|number| CowVal::owned(CelDouble::from(number))).ok_or_else(|| not_a_number("double"))
}

fn not_a_number(want: &str) -> ExecutionError {
    ExecutionError::UnexpectedType { got: "a text that is no such number".to_owned(), want: want.to_owned() }
}

/// Both operands, charged.
fn pair<'a, 'b, 'v>(
    args: &'a [CowVal<'b, 'v>],
) -> Result<(&'a (dyn Val + 'v), &'a (dyn Val + 'v)), ExecutionError> {
    let [left, right] = args else { return Err(wrong()) };
    charge(1 + weight(left.as_ref()) + weight(right.as_ref()))?;
    Ok((left.as_ref(), right.as_ref()))
}

fn overload(name: &str, left: &dyn Val, right: &dyn Val) -> ExecutionError {
    let kinds = vec![left.get_type().name().to_owned(), right.get_type().name().to_owned()];
    ExecutionError::no_such_overload(name, kinds)
}

fn add<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let (left, right) = pair(&args)?;
    let adder = left.as_adder().ok_or_else(|| overload("_+_", left, right))?;
    let sum = adder.add(right).map_err(|error| match error {
        ExecutionError::Overflow(..) => error,
        _ => overload("_+_", left, right),
    })?;
    Ok(CowVal::Owned(sum.into_owned()))
}

fn within<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let (left, right) = pair(&args)?;
    let container = right.as_container().ok_or_else(|| overload("in", left, right))?;
    truth(container.contains(left).map_err(|_| overload("in", left, right))?)
}

fn equal<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let (left, right) = pair(&args)?;
    truth(left.equals(right))
}

fn unequal<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let (left, right) = pair(&args)?;
    truth(!left.equals(right))
}

fn order(args: &[CowVal<'_, '_>], name: &str) -> Result<std::cmp::Ordering, ExecutionError> {
    let (left, right) = pair(args)?;
    let comparer = left.as_comparer().ok_or_else(|| overload(name, left, right))?;
    comparer.compare(right).map_err(|_| overload(name, left, right))
}

fn less<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    truth(order(&args, "_<_")?.is_lt())
}

fn at_most<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    truth(order(&args, "_<=_")?.is_le())
}

fn more<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    truth(order(&args, "_>_")?.is_gt())
}

fn at_least<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    truth(order(&args, "_>=_")?.is_ge())
}
