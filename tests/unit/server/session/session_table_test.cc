#include "server/session/session_table.h"

#include <gmock/gmock.h>

#include <set>
#include <thread>

#include "kernels/reference/reference_backend.h"
#include "server/base/error_reason.h"
#include "tests/support/fake_clock.h"

namespace attention::server {
namespace {

constexpr std::uint64_t kEpoch = 42;
const CacheShape kShape({{1, 8, 8, DType::kFloat32}}, 1);
const CacheShape kWideShape({{2, 8, 8, DType::kFloat32}}, 1);

class SessionTableTest : public ::testing::Test {
 protected:
  absl::StatusOr<SessionLease> Create(const std::string& tenant = "a",
                                      absl::Duration ttl = absl::ZeroDuration()) {
    return table_.Create({tenant, ttl, kShape, 0});
  }
  SessionHandle HandleOf(const SessionLease& lease) {
    return {"worker", kEpoch, lease->session_id};
  }
  static std::string ReasonOf(const absl::Status& status) {
    const auto detail = GetErrorDetail(status);
    return detail ? detail->reason : "";
  }

  std::unique_ptr<AttentionBackend> backend_ = reference::MakeReferenceBackend();
  PagePool pool_{backend_->memory(), std::size_t{4} << 20};
  KvCacheFactory caches_{{{*backend_, pool_}}, 16};
  FakeClock clock_;
  ServerMetrics metrics_;
  TenantLimitsTable tenants_{TenantLimitsSet{{.sessions = 2}, {}}};
  SessionTable table_{"worker", kEpoch,  {4, absl::Minutes(10), absl::Hours(1)}, caches_, clock_,
                      metrics_, tenants_};
};

TEST_F(SessionTableTest, ASessionIsFoundByItsHandle) {
  const auto created = Create();
  ASSERT_TRUE(created.ok());
  const auto found = table_.Acquire(HandleOf(*created), "a");
  ASSERT_TRUE(found.ok());
  EXPECT_EQ((*found)->session_id, (*created)->session_id);
}

TEST_F(SessionTableTest, ANameMakesOneSessionHoweverOftenItIsAskedFor) {
  const auto create = [&](const std::string& tenant, const std::string& name, int layers = 1) {
    return table_.Create(
        {tenant, absl::ZeroDuration(), CacheShape({{1, 8, 8, DType::kFloat32}}, layers), 0, name});
  };
  const auto first = create("a", "mine");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ((*create("a", "mine"))->session_id, (*first)->session_id);
  EXPECT_NE((*create("a", "other"))->session_id, (*first)->session_id);
  EXPECT_NE((*create("b", "mine"))->session_id, (*first)->session_id) << "names are each tenant's";
  EXPECT_EQ(table_.num_sessions(), 3);
  EXPECT_EQ(create("a", "mine", 2).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(create("a", std::string(129, 'x')).status().message()),
              ::testing::HasSubstr("name has 129 bytes, expected at most 128"));
  ASSERT_TRUE(table_.Delete(HandleOf(*first), "a").ok());
  EXPECT_NE((*create("a", "mine", 2))->session_id, (*first)->session_id)
      << "the name is free again";
}

TEST_F(SessionTableTest, AnOlderWriterDoesNotDelete) {
  const auto session = Create();
  (*session)->cache->set_writer(2);
  SessionHandle handle = HandleOf(*session);
  handle.writer = 1;
  EXPECT_EQ(ReasonOf(table_.Delete(handle, "a")), "FENCED");
  EXPECT_TRUE(table_.Acquire(handle, "a").ok());
  handle.writer = 2;
  EXPECT_TRUE(table_.Delete(handle, "a").ok());
  EXPECT_EQ(ReasonOf(table_.Acquire(handle, "a").status()), "SESSION_NOT_FOUND");
}

TEST_F(SessionTableTest, ASessionIsBusyWhileSomebodyElseLeasesIt) {
  const auto lease = Create();
  EXPECT_EQ((*lease)->state(), SessionState::kBusy);
  EXPECT_EQ((*lease)->state(/*own_leases=*/1), SessionState::kIdle);
  const auto other = table_.Acquire(HandleOf(*lease), "a");
  EXPECT_EQ((*lease)->state(/*own_leases=*/1), SessionState::kBusy);
}

TEST_F(SessionTableTest, AFilterWantsAllOfItsLabels) {
  Session session;
  session.name = "mine";
  session.labels = {{"model", "llama"}, {"user", "ann"}};
  session.num_leases = 1;
  EXPECT_TRUE(SessionFilter{}.Matches(session));
  EXPECT_TRUE((SessionFilter{.labels = {{"user", "ann"}}}.Matches(session)));
  EXPECT_TRUE((SessionFilter{"mine", session.labels, SessionState::kBusy}.Matches(session)));
  EXPECT_FALSE((SessionFilter{.labels = {{"user", "an"}}}.Matches(session)));
  EXPECT_FALSE((SessionFilter{.labels = {{"user", "ann"}, {"x", ""}}}.Matches(session)));
  EXPECT_FALSE((SessionFilter{.name = "min"}.Matches(session)));
  EXPECT_FALSE((SessionFilter{.state = SessionState::kIdle}.Matches(session)));
}

class ForkedSessionsTest : public SessionTableTest {
 protected:
  // Sessions to be, of these names, with caches like that one.
  std::vector<SessionTable::Candidate> Candidates(const KvCache& like,
                                                  const std::vector<std::string>& names) {
    std::vector<SessionTable::Candidate> candidates;
    for (const std::string& name : names) {
      candidates.push_back({{"a", absl::ZeroDuration(), like.shape(), 0, name}});
    }
    status_ = table_.MakeCaches(like, candidates);
    return candidates;
  }
  absl::StatusOr<std::vector<SessionLease>> Fork(const SessionLease& source,
                                                 const std::vector<std::string>& names) {
    auto candidates = Candidates(*source->cache, names);
    return status_.ok() ? table_.Add(std::move(candidates))
                        : absl::StatusOr<std::vector<SessionLease>>(status_);
  }

  absl::Status status_;
};

TEST_F(ForkedSessionsTest, AllAreMadeOrNone) {
  const auto source = Create("a");
  EXPECT_EQ(ReasonOf(Fork(*source, {"", ""}).status()), "QUOTA_EXCEEDED") << "a tenant's 2";
  EXPECT_EQ(table_.num_sessions("a"), 1);
  tenants_.Replace({{.sessions = 10}, {}});
  EXPECT_EQ(ReasonOf(Fork(*source, {"", "", "x", ""}).status()), "QUOTA_EXCEEDED")
      << "the server's 4";
  EXPECT_EQ(table_.num_sessions(), 1);
  EXPECT_EQ(pool_.num_caches(), 1);
  const auto made = Fork(*source, {"", "x", ""});
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->size(), 3u);
  EXPECT_EQ((*made)[1]->name, "x");
  EXPECT_EQ(table_.num_sessions("a"), 4);
  EXPECT_TRUE(table_.Acquire(HandleOf((*made)[2]), "a").ok());
}

TEST_F(ForkedSessionsTest, ANamedCopyIsMadeOnce) {
  tenants_.Replace({{.sessions = 10}, {}});
  const auto source = Create("a");
  const auto first = Fork(*source, {"x", "y"});
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(table_.Delete(HandleOf((*first)[1]), "a").ok());
  const auto candidates = Candidates(*(*source)->cache, {"x", "y"});
  EXPECT_EQ(candidates[0].cache, nullptr) << "it is there already";
  const auto again = Fork(*source, {"x", "y"});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)[0]->session_id, (*first)[0]->session_id);
  EXPECT_NE((*again)[1]->session_id, (*first)[1]->session_id);
  EXPECT_EQ(table_.num_sessions(), 3);
}

TEST_F(ForkedSessionsTest, OfTwoCallsOfOneNameTheFasterOneMakesTheSession) {
  tenants_.Replace({{.sessions = 10}, {}});
  const auto source = Create("a");
  auto slower = Candidates(*(*source)->cache, {"x", ""});
  const auto faster = Fork(*source, {"x"});
  ASSERT_TRUE(faster.ok());
  const auto made = table_.Add(std::move(slower));
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ((*made)[0]->session_id, (*faster)[0]->session_id);
  EXPECT_EQ(table_.num_sessions(), 3);
  EXPECT_EQ(pool_.num_caches(), 3) << "the cache that came late is gone";
}

TEST_F(ForkedSessionsTest, NamesOfOtherGeometriesAreRefused) {
  const auto source = Create("a");
  const auto other = table_.Create({"a", absl::ZeroDuration(), kWideShape, 0, "x"});
  ASSERT_TRUE(other.ok());
  EXPECT_EQ(Fork(*source, {"x"}).status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(SessionTableTest, ALimitThatIsLoweredKeepsTheSessionsThatThereAre) {
  const auto first = Create("a");
  const auto second = Create("a");
  ASSERT_TRUE(second.ok());
  tenants_.Replace({{.sessions = 1}, {}});
  EXPECT_TRUE(table_.Acquire(HandleOf(*first), "a").ok());
  EXPECT_EQ(ReasonOf(Create("a").status()), "QUOTA_EXCEEDED");
  ASSERT_TRUE(table_.Delete(HandleOf(*first), "a").ok());
  EXPECT_EQ(ReasonOf(Create("a").status()), "QUOTA_EXCEEDED");
  ASSERT_TRUE(table_.Delete(HandleOf(*second), "a").ok());
  EXPECT_TRUE(Create("a").ok());
}

TEST_F(SessionTableTest, ANameOutlivesAnExpiredSession) {
  const SessionTable::NewSession request{"a", absl::Minutes(1), kShape, 0, "mine"};
  const std::string first = (*table_.Create(request))->session_id;
  clock_.Advance(absl::Minutes(2));
  EXPECT_NE((*table_.Create(request))->session_id, first);
  EXPECT_EQ(table_.num_sessions(), 1);
}

TEST_F(SessionTableTest, BoundSessionsEndTogetherAndSayHow) {
  const auto bound = Create("a");
  const auto free = Create("a");
  const auto others = Create("b");
  const std::uint64_t binding = table_.NewBinding();
  const std::uint64_t other_binding = table_.NewBinding();
  EXPECT_NE(binding, other_binding);
  (*bound)->binding = binding;
  (*others)->binding = other_binding;
  table_.EndBound(binding);
  EXPECT_EQ(table_.num_sessions(), 2);
  const absl::Status status = table_.Acquire(HandleOf(*bound), "a").status();
  EXPECT_EQ(ReasonOf(status), "SESSION_NOT_FOUND");
  EXPECT_THAT(std::string(status.message()),
              ::testing::HasSubstr("ended with the stream that it was bound to"));
  EXPECT_TRUE(table_.Acquire(HandleOf(*free), "a").ok());
  EXPECT_TRUE(table_.Acquire(HandleOf(*others), "b").ok());
  EXPECT_EQ((*bound)->cache->num_layers(), 1) << "who uses it keeps it";
}

TEST_F(SessionTableTest, AnotherTenantCannotTellThatItExists) {
  const auto created = Create("a");
  ASSERT_TRUE(created.ok());
  const auto foreign = table_.Acquire(HandleOf(*created), "b");
  EXPECT_EQ(foreign.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(foreign.status()), "SESSION_NOT_FOUND");
  SessionHandle unknown = HandleOf(*created);
  unknown.session_id = MakeSessionId();
  EXPECT_EQ(ReasonOf(table_.Acquire(unknown, "b").status()), ReasonOf(foreign.status()));
}

TEST_F(SessionTableTest, AnotherTenantCannotDeleteIt) {
  const auto created = Create("a");
  ASSERT_TRUE(created.ok());
  EXPECT_TRUE(table_.Delete(HandleOf(*created), "b").ok());
  EXPECT_TRUE(table_.Acquire(HandleOf(*created), "a").ok());
}

TEST_F(SessionTableTest, AHandleOfAnotherWorkerIsMovedAndOfAnotherEpochLost) {
  const auto created = Create();
  ASSERT_TRUE(created.ok());
  SessionHandle moved = HandleOf(*created);
  moved.server_name = "elsewhere";
  const absl::Status moved_status = table_.Acquire(moved, "a").status();
  EXPECT_EQ(moved_status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(moved_status), "SESSION_MOVED");
  EXPECT_EQ(GetErrorDetail(moved_status)->metadata.at("server_name"), "elsewhere");
  SessionHandle lost = HandleOf(*created);
  lost.server_epoch = kEpoch - 1;
  const absl::Status lost_status = table_.Acquire(lost, "a").status();
  EXPECT_EQ(lost_status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(lost_status), "SESSION_LOST");
}

TEST_F(SessionTableTest, HandlesThatNoServerMadeAreRefusedByField) {
  SessionHandle handle{"worker", kEpoch, std::string(300, 'x')};
  EXPECT_THAT(std::string(table_.Acquire(handle, "a").status().message()),
              ::testing::HasSubstr("handle.session_id has 300 bytes, expected at most 256"));
  handle = {std::string(300, 'x'), kEpoch, MakeSessionId()};
  EXPECT_THAT(std::string(table_.Acquire(handle, "a").status().message()),
              ::testing::HasSubstr("handle.server_name has 300 bytes"));
}

TEST_F(SessionTableTest, AnIdleSessionExpiresAndItsOwnerIsTold) {
  SessionHandle handle;
  {
    const auto created = Create();
    ASSERT_TRUE(created.ok());
    handle = HandleOf(*created);
  }
  clock_.Advance(absl::Minutes(10) - absl::Milliseconds(1));
  EXPECT_TRUE(table_.Acquire(handle, "a").ok()) << "use restarts the TTL";
  clock_.Advance(absl::Minutes(10) - absl::Milliseconds(1));
  EXPECT_EQ(table_.ExpireIdle(), 0);
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(table_.ExpireIdle(), 1);
  EXPECT_EQ(ReasonOf(table_.Acquire(handle, "a").status()), "SESSION_EXPIRED");
  EXPECT_EQ(table_.num_sessions(), 0);
  EXPECT_EQ(metrics_.sessions_expired.value(), 1);
}

TEST_F(SessionTableTest, ExpiryHoldsAtOnceNotOnlyWhenTheReaperCame) {
  SessionHandle handle;
  {
    const auto created = Create();
    handle = HandleOf(*created);
  }
  clock_.Advance(absl::Minutes(10));
  EXPECT_EQ(ReasonOf(table_.Acquire(handle, "a").status()), "SESSION_EXPIRED");
  EXPECT_EQ(table_.num_sessions(), 0);
}

TEST_F(SessionTableTest, ALeasedSessionNeverExpires) {
  auto lease = Create();
  ASSERT_TRUE(lease.ok());
  clock_.Advance(absl::Hours(5));
  EXPECT_EQ(table_.ExpireIdle(), 0);
  const SessionHandle handle = HandleOf(*lease);
  *lease = SessionLease();
  EXPECT_TRUE(table_.Acquire(handle, "a").ok()) << "the TTL runs from the end of the lease";
}

TEST_F(SessionTableTest, LimitsOfServerAndTenantHold) {
  std::vector<SessionLease> leases;
  for (const char* tenant : {"a", "a", "b", "b"}) leases.push_back(*Create(tenant));
  const absl::Status server_full = Create("c").status();
  EXPECT_EQ(server_full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(server_full), "QUOTA_EXCEEDED");
  ASSERT_TRUE(table_.Delete(HandleOf(leases[0]), "a").ok());
  EXPECT_EQ(ReasonOf(Create("b").status()), "QUOTA_EXCEEDED");
  EXPECT_TRUE(Create("a").ok());
}

TEST_F(SessionTableTest, TtlOutOfRangeIsRefused) {
  EXPECT_EQ(Create("a", absl::Hours(2)).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Create("a", -absl::Seconds(1)).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(Create("a", absl::Hours(1)).ok());
}

TEST_F(SessionTableTest, DeletingTwiceIsOkAndFreesThePagesOnce) {
  auto created = Create();
  ASSERT_TRUE(created.ok());
  ASSERT_TRUE((*created)->cache->Extend(0, 100).ok());
  const SessionHandle handle = HandleOf(*created);
  EXPECT_TRUE(table_.Delete(handle, "a").ok());
  EXPECT_TRUE(table_.Delete(handle, "a").ok());
  EXPECT_GT(pool_.used_bytes(), 0u) << "a call in flight keeps its cache";
  *created = SessionLease();
  EXPECT_EQ(pool_.used_bytes(), 0u);
}

TEST_F(SessionTableTest, ListsOnlyTheTenantsSessionsInPages) {
  std::set<std::string> ids;
  ids.insert((*Create("a"))->session_id);
  ids.insert((*Create("a"))->session_id);
  ASSERT_TRUE(Create("b").ok());
  const auto first = table_.List("a", "", 1);
  ASSERT_EQ(first.size(), 1u);
  const auto second = table_.List("a", first[0]->session_id, 5);
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ((std::set<std::string>{first[0]->session_id, second[0]->session_id}), ids);
}

TEST_F(SessionTableTest, IdsAreLongAndDoNotRepeat) {
  std::set<std::string> ids;
  for (int i = 0; i < 1000; ++i) {
    const std::string id = MakeSessionId();
    EXPECT_EQ(id.size(), 32u);
    ids.insert(id);
  }
  EXPECT_EQ(ids.size(), 1000u);
}

TEST_F(SessionTableTest, ThreadsCreateUseAndDeleteAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 200; ++i) {
        auto created = Create("tenant" + std::to_string(t));
        if (!created.ok()) continue;
        const SessionHandle handle = HandleOf(*created);
        EXPECT_TRUE(table_.Acquire(handle, "tenant" + std::to_string(t)).ok());
        table_.ExpireIdle();
        EXPECT_TRUE(table_.Delete(handle, "tenant" + std::to_string(t)).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(table_.num_sessions(), 0);
}

}  // namespace
}  // namespace attention::server
