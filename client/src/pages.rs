//! Answers over everything there is, fetched page by page.

use std::future::Future;

use quorate_metadata::ErrorName;
use quorate_proto::admin as wire;
use quorate_proto::log::{ListStraysReply, ListStraysRequest};

use crate::error::ClientError;

/// Items asked for at a time. A node sends fewer where they take more than about 1 MiB.
const PAGE_SIZE: u32 = 10_000;

/// A request for one page.
pub trait PageRequest: Clone {
    fn turn_to(&mut self, page_size: u32, page_token: String);
}

/// One page of an answer.
pub trait Page: Sized {
    /// Of the page after this one; empty where it is the last.
    fn take_token(&mut self) -> String;

    /// Adds what the page after this one has.
    fn append(&mut self, next: Self);
}

/// Asks for one page after the other until there is no more. A node that knows no pages answers with one.
pub async fn all_pages<Request, Reply, Answer>(
    mut request: Request,
    call: impl Fn(Request) -> Answer,
) -> Result<Reply, ClientError>
where
    Request: PageRequest,
    Reply: Page,
    Answer: Future<Output = Result<Reply, ClientError>>,
{
    request.turn_to(PAGE_SIZE, String::new());
    let mut all = call(request.clone()).await?;
    let mut token = all.take_token();
    while !token.is_empty() {
        request.turn_to(PAGE_SIZE, token.clone());
        let mut page = call(request.clone()).await?;
        let next = page.take_token();
        if next == token {
            let message = format!("the page of token {token:?} leads to itself");
            return Err(ClientError::failed(ErrorName::UnknownServerError, message));
        }
        token = next;
        all.append(page);
    }
    Ok(all)
}

macro_rules! page_requests {
    ($($request:ident)*) => {
        $(impl PageRequest for wire::$request {
            fn turn_to(&mut self, page_size: u32, page_token: String) {
                (self.page_size, self.page_token) = (page_size, page_token);
            }
        })*
    };
}

page_requests! {
    ListTopicsRequest DescribeTopicsRequest ListPartitionsRequest DescribeConfigsRequest ListBrokersRequest
    ListReassignmentsRequest
}

impl PageRequest for ListStraysRequest {
    fn turn_to(&mut self, page_size: u32, page_token: String) {
        (self.page_size, self.page_token) = (page_size, page_token);
    }
}

impl Page for ListStraysReply {
    fn take_token(&mut self) -> String {
        std::mem::take(&mut self.next_page_token)
    }

    fn append(&mut self, next: Self) {
        self.strays.extend(next.strays);
    }
}

impl Page for wire::ListTopicsReply {
    fn take_token(&mut self) -> String {
        std::mem::take(&mut self.next_page_token)
    }

    fn append(&mut self, next: Self) {
        self.topics.extend(next.topics);
    }
}

impl Page for wire::ListPartitionsReply {
    fn take_token(&mut self) -> String {
        std::mem::take(&mut self.next_page_token)
    }

    fn append(&mut self, next: Self) {
        self.partitions.extend(next.partitions);
    }
}

impl Page for wire::DescribeTopicsReply {
    fn take_token(&mut self) -> String {
        std::mem::take(&mut self.next_page_token)
    }

    fn append(&mut self, next: Self) {
        for topic in next.topics {
            match self.topics.last_mut() {
                Some(begun) if topic.continued => {
                    begun.partitions.extend(topic.partitions);
                    begun.error = begun.error.take().or(topic.error);
                }
                _ => self.topics.push(topic),
            }
        }
    }
}

impl Page for wire::DescribeConfigsReply {
    fn take_token(&mut self) -> String {
        std::mem::take(&mut self.next_page_token)
    }

    fn append(&mut self, next: Self) {
        self.resources.extend(next.resources);
    }
}

impl Page for wire::ListBrokersReply {
    fn take_token(&mut self) -> String {
        std::mem::take(&mut self.next_page_token)
    }

    fn append(&mut self, next: Self) {
        self.brokers.extend(next.brokers);
    }
}

impl Page for wire::ListReassignmentsReply {
    fn take_token(&mut self) -> String {
        std::mem::take(&mut self.next_page_token)
    }

    fn append(&mut self, next: Self) {
        for operation in next.reassignments {
            match self.reassignments.last_mut() {
                Some(begun) if operation.continued => begun.partitions.extend(operation.partitions),
                _ => self.reassignments.push(operation),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn topic(name: &str, continued: bool, partitions: i32) -> wire::TopicDescription {
        let partition = |partition| wire::PartitionDescription { partition, ..Default::default() };
        wire::TopicDescription {
            name: name.to_owned(),
            continued,
            partitions: (0..partitions).map(partition).collect(),
            ..Default::default()
        }
    }

    fn page(offset: i64, topics: Vec<wire::TopicDescription>, token: &str) -> wire::DescribeTopicsReply {
        wire::DescribeTopicsReply { offset, topics, next_page_token: token.to_owned() }
    }

    #[tokio::test]
    async fn pages_are_asked_for_until_there_is_no_more() {
        let pages = [
            page(7, vec![topic("a", false, 1), topic("b", false, 2)], "one"),
            page(8, vec![topic("b", true, 3)], "two"),
            page(9, vec![topic("b", true, 1), topic("c", false, 1)], ""),
        ];
        let pages = RefCell::new(pages.into_iter());
        let tokens = RefCell::new(Vec::new());
        let call = |request: wire::DescribeTopicsRequest| {
            assert_eq!(request.page_size, PAGE_SIZE);
            tokens.borrow_mut().push(request.page_token);
            std::future::ready(Ok(pages.borrow_mut().next().expect("three pages are asked for")))
        };
        let all = all_pages(wire::DescribeTopicsRequest::default(), call).await.expect("no page fails");
        let topics: Vec<_> = all.topics.iter().map(|topic| (topic.name.as_str(), topic.partitions.len())).collect();
        assert_eq!((all.offset, topics), (7, vec![("a", 1), ("b", 6), ("c", 1)]));
        assert_eq!(*tokens.borrow(), ["", "one", "two"]);
    }

    #[tokio::test]
    async fn an_operation_in_two_pages_is_one() {
        let operation = |id, continued, partitions: i32| wire::ReassignmentDescription {
            id,
            continued,
            partitions: (0..partitions)
                .map(|partition| wire::ReassigningPartition { partition, ..Default::default() })
                .collect(),
            ..Default::default()
        };
        let page = |reassignments, token: &str| wire::ListReassignmentsReply {
            reassignments,
            next_page_token: token.to_owned(),
            ..Default::default()
        };
        let pages = [
            page(vec![operation(1, false, 1), operation(4, false, 2)], "one"),
            page(vec![operation(4, true, 3), operation(5, false, 1)], ""),
        ];
        let pages = RefCell::new(pages.into_iter());
        let call = |_: wire::ListReassignmentsRequest| {
            std::future::ready(Ok(pages.borrow_mut().next().expect("two pages are asked for")))
        };
        let all = all_pages(wire::ListReassignmentsRequest::default(), call).await.expect("no page fails");
        let found: Vec<_> = all.reassignments.iter().map(|found| (found.id, found.partitions.len())).collect();
        assert_eq!(found, [(1, 1), (4, 5), (5, 1)]);
    }

    #[tokio::test]
    async fn a_topic_that_is_gone_in_a_later_page_has_its_error() {
        let gone = wire::TopicDescription { error: Some(wire_error()), ..topic("a", true, 0) };
        let pages = [page(7, vec![topic("a", false, 2)], "one"), page(8, vec![gone], "")];
        let pages = RefCell::new(pages.into_iter());
        let call = |_: wire::DescribeTopicsRequest| std::future::ready(Ok(pages.borrow_mut().next().expect("two")));
        let all = all_pages(wire::DescribeTopicsRequest::default(), call).await.expect("no page fails");
        assert_eq!((all.topics.len(), all.topics[0].error.clone()), (1, Some(wire_error())));
    }

    fn wire_error() -> wire::Error {
        quorate_proto::error::to_item(&quorate_metadata::ApiError::new(ErrorName::UnknownTopicOrPartition, "gone"))
    }

    #[tokio::test]
    async fn a_page_that_leads_to_itself_is_an_error() {
        let call = |_: wire::DescribeTopicsRequest| std::future::ready(Ok(page(7, Vec::new(), "again")));
        let failed = all_pages(wire::DescribeTopicsRequest::default(), call).await;
        assert_eq!(failed.expect_err("it would go on for ever").name(), ErrorName::UnknownServerError);
    }
}
