//! What a `.proto` file says of its parts in comments, for the API's description.

use prost_reflect::FileDescriptor;

/// The comment on a part of a file: the one before it, or the one behind it in its line. None where there is none, or where
/// the descriptors came without (`protoc` leaves comments out of a set unless `--include_source_info` asks for them).
pub(super) fn on(file: &FileDescriptor, path: &[i32]) -> Option<String> {
    let info = file.file_descriptor_proto().source_code_info.as_ref()?;
    let place = info.location.iter().find(|place| place.path == path)?;
    let text = place.leading_comments.as_deref().or(place.trailing_comments.as_deref())?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let text = lines.join("\n").trim().to_owned();
    Some(text).filter(|text| !text.is_empty())
}
