//! When the process takes less work.

use crate::units::{Percent, Size};
use clap::Args;

/// When the process takes less work.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Limits")]
pub struct ShedSettings {
    /// Requests under way at a time in the whole process; the more important a route, the more of it it may fill
    /// [default: as many as connections and their streams bring]
    #[arg(long, env = "MAX_IN_FLIGHT", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_in_flight: Option<u32>,

    /// Resident memory from which on new streams and routes of low priority are answered 503, and an eighth above it
    /// everything but health: a size, a share of the control group's limit if it has one, or `off`
    #[arg(long, env = "SHED_MEMORY", default_value = "80%", value_name = "SHARE|SIZE", value_parser = memory)]
    pub shed_memory: MemoryMark,
}

/// Memory from which on less work is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MemoryMark {
    /// However much there is.
    Off,
    /// A share of what the process may take.
    Share(Percent),
    /// So many bytes.
    Size(Size),
}

fn memory(text: &str) -> Result<MemoryMark, String> {
    if text == "off" {
        return Ok(MemoryMark::Off);
    }
    let share = Percent::parse(text).filter(|share| share.0 > 0.0).map(MemoryMark::Share);
    let size = Size::parse(text).filter(|size| size.0 > 0).map(MemoryMark::Size);
    share.or(size).ok_or_else(|| "a share such as `80%`, a size such as `1GiB`, or `off`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_share_a_size_or_off() {
        assert_eq!(memory("off"), Ok(MemoryMark::Off));
        assert_eq!(memory("75%"), Ok(MemoryMark::Share(Percent(0.75))));
        assert_eq!(memory("1GiB"), Ok(MemoryMark::Size(Size(1 << 30))));
        for bad in ["", "0%", "120%", "0B", "1024", "none"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }
}
