//! Who calls, and when: what every service asks first.

use std::time::SystemTime;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

/// Who calls: what they own is found under this.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Caller {
    pub(super) tenant_id: String,
    pub(super) user_id: String,
}

impl Caller {
    /// From `x-tenant-id` and `x-user-id`.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let text = |name| text(request.metadata(), name);
        let user_id = text("x-user-id")
            .ok_or_else(|| Status::unauthenticated("x-user-id is missing from the metadata"))?;
        Ok(Self { tenant_id: text("x-tenant-id").unwrap_or_default(), user_id })
    }
}

fn text(metadata: &MetadataMap, name: &'static str) -> Option<String> {
    let value = metadata.get(name)?.to_str().ok()?;
    (!value.is_empty()).then(|| value.to_owned())
}

/// Now, as protobuf says it.
pub(super) fn now() -> prost_types::Timestamp {
    SystemTime::now().into()
}

/// A page of `limit` (1 to 100; 20 for 0) behind `cursor`, and the cursor of the next. The cursor is an item's id.
pub(super) fn page<T: Clone>(
    all: impl Iterator<Item = T>,
    limit: i32,
    cursor: &str,
    id: impl Fn(&T) -> &str,
) -> Result<(Vec<T>, Option<String>), Status> {
    let limit = match limit {
        0 => 20,
        1..=100 => usize::try_from(limit).expect("1 to 100"),
        _ => return Err(super::faults::invalid("limit", "1 to 100")),
    };
    let mut rest =
        all.skip_while(|item| !cursor.is_empty() && id(item) != cursor).skip(usize::from(!cursor.is_empty()));
    let items: Vec<T> = rest.by_ref().take(limit).collect();
    let next = rest.next().and(items.last()).map(|item| id(item).to_owned());
    Ok((items, next))
}
