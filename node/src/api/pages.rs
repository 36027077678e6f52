//! Answers over everything there is, in pages.
//!
//! A page is bounded in items and in bytes, and made in slices, so that other requests of the same thread have their turn.
//! A token names the item that the next page begins with: `call:item:partition:topic id:name`. What it names may be gone by
//! then: a call goes on with what comes after it, never with another thing of the same name.

use prost::Message;
use quorate_metadata::ids::TopicId;
use quorate_metadata::{ApiError, ErrorName};
use tokio::task::yield_now;

use super::request::invalid;

const MIB: usize = 1024 * 1024;

/// Items in one page, whatever was asked for: about what fits into the bytes of one.
const PAGE_ITEMS_MAX: usize = 10_000;

/// Bytes in one page: a quarter of what a gRPC client takes by default.
const PAGE_BYTES_MAX: usize = MIB;

/// Bytes of an answer to a request that knows no pages: about 60 000 partitions. Sixteen of them at once are half of the
/// smallest memory that a node is run with.
const WHOLE_BYTES_MAX: usize = 16 * MIB;

/// Partitions looked at before other requests of this thread have their turn: less than 1 ms.
const PARTITIONS_PER_SLICE: usize = 4_096;

/// Work that is done in slices.
#[derive(Debug, Default)]
pub struct Slices {
    looked_at: usize,
}

impl Slices {
    /// To be called with each partition that is looked at.
    pub async fn step(&mut self) {
        self.looked_at += 1;
        if self.looked_at.is_multiple_of(PARTITIONS_PER_SLICE) {
            yield_now().await;
        }
    }
}

/// The room in one answer.
#[derive(Debug)]
pub struct Page {
    is_whole: bool,
    items: usize,
    items_max: usize,
    bytes: usize,
    pub slices: Slices,
}

impl Page {
    pub fn new(page_size: u32, page_token: &str) -> Self {
        let is_whole = page_size == 0 && page_token.is_empty();
        let wanted = usize::try_from(page_size).unwrap_or(usize::MAX);
        let items_max = match wanted {
            _ if is_whole => usize::MAX,
            0 => PAGE_ITEMS_MAX,
            wanted => wanted.min(PAGE_ITEMS_MAX),
        };
        Self { is_whole, items: 0, items_max, bytes: 0, slices: Slices::default() }
    }

    /// Whether the item is still part of this page. The first one always is.
    pub fn take(&mut self, item: &impl Message) -> Result<bool, ApiError> {
        let bytes = item.encoded_len();
        let fits = self.items < self.items_max && (self.is_whole || self.bytes + bytes <= PAGE_BYTES_MAX);
        if self.items > 0 && !fits {
            return Ok(false);
        }
        self.put(item)?;
        Ok(true)
    }

    /// An item that is part of this page in any case.
    pub fn put(&mut self, item: &impl Message) -> Result<(), ApiError> {
        self.items += 1;
        self.add(item.encoded_len())
    }

    /// Counts what comes with the items.
    pub fn add(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.bytes += bytes;
        if self.is_whole && self.bytes > WHOLE_BYTES_MAX {
            let message =
                format!("the answer has more than {WHOLE_BYTES_MAX} bytes: ask for it in pages, by page_size");
            return Err(ApiError::new(ErrorName::MessageTooLarge, message));
        }
        Ok(())
    }

    /// Whether nothing more goes into this page.
    pub fn is_full(&self) -> bool {
        self.items > 0 && (self.items >= self.items_max || (!self.is_whole && self.bytes >= PAGE_BYTES_MAX))
    }
}

/// Where a page begins; the default is the first page.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Token {
    pub item: usize,
    pub partition: usize,
    pub topic: Option<TopicId>,
    pub name: String,
}

impl Token {
    pub fn encode(&self, call: &str) -> String {
        let topic = self.topic.map(|topic| topic.to_string()).unwrap_or_default();
        format!("{call}:{}:{}:{topic}:{}", self.item, self.partition, self.name)
    }

    /// Refuses what this call has not given out.
    pub fn decode(call: &str, text: &str) -> Result<Self, ApiError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        Self::parse(call, text).ok_or_else(|| Self::foreign(text))
    }

    /// The refusal of a token that was not given out for the same request.
    pub fn foreign(text: &str) -> ApiError {
        invalid(format!("invalid page_token {text:?}: expected the next_page_token of the same request"))
    }

    fn parse(call: &str, text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.splitn(5, ':').collect();
        let [found, item, partition, topic, name] = fields[..] else { return None };
        let topic = if topic.is_empty() { None } else { Some(topic.parse().ok()?) };
        let number = |text: &str| text.parse::<u32>().ok().and_then(|number| usize::try_from(number).ok());
        let (item, partition) = (number(item)?, number(partition)?);
        (found == call).then(|| Self { item, partition, topic, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::admin::TopicSummary;

    use super::*;

    fn item(bytes: usize) -> TopicSummary {
        TopicSummary { name: "n".repeat(bytes), ..TopicSummary::default() }
    }

    /// How many items of so many bytes a page takes.
    fn taken(page_size: u32, bytes: usize) -> Result<usize, ApiError> {
        let mut page = Page::new(page_size, "");
        let mut taken = 0;
        while page.take(&item(bytes))? {
            taken += 1;
        }
        assert!(page.is_full() || bytes > 1);
        Ok(taken)
    }

    #[test]
    fn a_page_is_bounded_in_items_and_in_bytes() {
        assert_eq!(taken(7, 1), Ok(7));
        assert_eq!(taken(u32::MAX, 1), Ok(PAGE_ITEMS_MAX));
        assert_eq!(taken(100, MIB / 4), Ok(3));
        assert_eq!(taken(100, 2 * MIB), Ok(1), "an item that is larger than a page has one to itself");
    }

    #[test]
    fn a_page_after_the_first_is_bounded_without_a_size_too() {
        let mut page = Page::new(0, "token");
        let taken = (0..=PAGE_ITEMS_MAX).filter(|_| page.take(&item(1)).expect("a page is not refused"));
        assert_eq!(taken.count(), PAGE_ITEMS_MAX);
    }

    #[test]
    fn a_page_is_full_of_what_it_was_given_in_any_case() {
        let mut page = Page::new(100, "");
        page.put(&item(PAGE_BYTES_MAX / 2)).expect("a page is not refused");
        assert!(!page.is_full());
        page.add(PAGE_BYTES_MAX / 2).expect("a page is not refused");
        assert!(page.is_full());
    }

    #[test]
    fn an_answer_that_is_not_paged_is_whole_or_refused() {
        let refused = taken(0, MIB).expect_err("it is never full");
        assert_eq!(refused.name, ErrorName::MessageTooLarge);
    }

    #[test]
    fn a_token_comes_back_as_it_was_given_to_the_same_call_only() {
        let topic = Some(TopicId::from_bytes([7; 16]));
        let token = Token { item: 3, partition: 9, topic, name: "orders:1".to_owned() };
        assert_eq!(Token::decode("topics", &token.encode("topics")), Ok(token.clone()));
        let without = Token { topic: None, ..token.clone() };
        assert_eq!(Token::decode("topics", &without.encode("topics")), Ok(without));
        assert_eq!(Token::decode("topics", ""), Ok(Token::default()));
        for foreign in [
            &token.encode("partitions"),
            "topics",
            "topics:1",
            "topics:0:0:a",
            "topics:-1:0::a",
            "topics:0:4294967296::a",
            "topics:0:0:id:a",
            "7",
        ] {
            let refused = Token::decode("topics", foreign).expect_err("it was not given out");
            assert_eq!(refused.name, ErrorName::InvalidRequest, "{foreign}");
        }
    }
}
