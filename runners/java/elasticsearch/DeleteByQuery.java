package velocity.elasticsearch;

import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.elasticsearch.action.ActionListener;
import org.elasticsearch.action.bulk.BulkItemResponse;
import org.elasticsearch.action.bulk.BulkRequest;
import org.elasticsearch.action.bulk.BulkResponse;
import org.elasticsearch.action.delete.DeleteRequest;
import org.elasticsearch.action.search.ClearScrollRequest;
import org.elasticsearch.action.search.SearchRequest;
import org.elasticsearch.action.search.SearchResponse;
import org.elasticsearch.action.search.SearchScrollRequest;
import org.elasticsearch.action.support.IndicesOptions;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.common.Strings;
import org.elasticsearch.core.TimeValue;
import org.elasticsearch.rest.BaseRestHandler;
import org.elasticsearch.rest.RestChannel;
import org.elasticsearch.rest.RestRequest;
import org.elasticsearch.rest.RestResponse;
import org.elasticsearch.rest.RestStatus;
import org.elasticsearch.search.SearchHit;
import org.elasticsearch.search.builder.SearchSourceBuilder;
import org.elasticsearch.xcontent.XContentBuilder;

/**
 * {@code POST /{index}/_delete_by_query}: a scroll over the matches, each page deleted in bulk, each
 * document only if it is still as the search saw it.
 */
final class DeleteByQuery extends BaseRestHandler {

  private static final TimeValue SCROLL = TimeValue.timeValueMinutes(5);
  private static final int PAGE = 1000;

  @Override
  public String getName() {
    return "velocity_delete_by_query";
  }

  @Override
  public List<Route> routes() {
    return List.of(new Route(RestRequest.Method.POST, "/{index}/_delete_by_query"));
  }

  @Override
  protected RestChannelConsumer prepareRequest(RestRequest request, NodeClient client)
      throws IOException {
    SearchSourceBuilder query = new SearchSourceBuilder();
    if (request.hasContentOrSourceParam()) {
      try (var parser = request.contentOrSourceParamParser()) {
        query.parseXContent(parser, true, feature -> true);
      }
    }
    query.size(request.paramAsInt("scroll_size", PAGE)).fetchSource(false);
    query.seqNoAndPrimaryTerm(true);
    SearchRequest search =
        new SearchRequest(Strings.splitStringByCommaToArray(request.param("index")));
    search.source(query).scroll(SCROLL);
    search.indicesOptions(IndicesOptions.fromRequest(request, search.indicesOptions()));
    boolean pastConflicts = "proceed".equals(request.param("conflicts", "abort"));
    boolean refresh = request.paramAsBoolean("refresh", false);
    return channel -> new Run(channel, client, search, pastConflicts, refresh).start();
  }

  /** One request, from its first page to its answer. */
  private static final class Run {
    private final RestChannel channel;
    private final NodeClient client;
    private final SearchRequest search;
    private final boolean pastConflicts;
    private final boolean refresh;
    private final long startedAt = System.nanoTime();
    private final List<BulkItemResponse.Failure> failures = new ArrayList<>();
    private final Set<String> indices = new TreeSet<>();
    private String scroll;
    private long seen;
    private long deleted;
    private long conflicts;
    private int batches;

    Run(
        RestChannel channel,
        NodeClient client,
        SearchRequest search,
        boolean pastConflicts,
        boolean refresh) {
      this.channel = channel;
      this.client = client;
      this.search = search;
      this.pastConflicts = pastConflicts;
      this.refresh = refresh;
    }

    void start() {
      client.search(search, ActionListener.wrap(this::delete, this::fail));
    }

    private void delete(SearchResponse page) {
      scroll = page.getScrollId();
      SearchHit[] hits = page.getHits().getHits();
      if (hits.length == 0) {
        finish();
        return;
      }
      batches++;
      seen += hits.length;
      BulkRequest bulk = new BulkRequest();
      for (SearchHit hit : hits) {
        indices.add(hit.getIndex());
        bulk.add(
            new DeleteRequest(hit.getIndex(), hit.getId())
                .setIfSeqNo(hit.getSeqNo())
                .setIfPrimaryTerm(hit.getPrimaryTerm()));
      }
      client.bulk(bulk, ActionListener.wrap(this::count, this::abort));
    }

    private void count(BulkResponse items) {
      for (BulkItemResponse item : items) {
        if (!item.isFailed()) {
          deleted++;
          continue;
        }
        boolean conflict = item.getFailure().getStatus() == RestStatus.CONFLICT;
        if (conflict) {
          conflicts++;
        }
        if (!conflict || !pastConflicts) {
          failures.add(item.getFailure());
        }
      }
      if (failures.isEmpty()) {
        client.searchScroll(
            new SearchScrollRequest(scroll).scroll(SCROLL),
            ActionListener.wrap(this::delete, this::abort));
      } else {
        finish();
      }
    }

    private void finish() {
      closeScroll(
          () -> {
            if (refresh && !indices.isEmpty()) {
              client
                  .admin()
                  .indices()
                  .prepareRefresh(indices.toArray(new String[0]))
                  .execute(ActionListener.wrap(refreshed -> answer(), this::fail));
            } else {
              answer();
            }
          });
    }

    private void abort(Exception cause) {
      closeScroll(() -> fail(cause));
    }

    private void closeScroll(Runnable then) {
      ClearScrollRequest clear = new ClearScrollRequest();
      clear.addScrollId(scroll);
      client.clearScroll(clear, ActionListener.running(then));
    }

    private void answer() {
      try {
        XContentBuilder body = channel.newBuilder().startObject();
        body.field("took", (System.nanoTime() - startedAt) / 1_000_000);
        body.field("timed_out", false);
        body.field("total", seen);
        body.field("deleted", deleted);
        body.field("batches", batches);
        body.field("version_conflicts", conflicts);
        body.field("noops", 0);
        body.startObject("retries").field("bulk", 0).field("search", 0).endObject();
        body.field("throttled_millis", 0);
        body.field("requests_per_second", -1.0f);
        body.field("throttled_until_millis", 0);
        body.startArray("failures");
        for (BulkItemResponse.Failure failure : failures) {
          body.startObject();
          body.field("index", failure.getIndex());
          body.field("id", failure.getId());
          body.field("reason", failure.getMessage());
          body.field("status", failure.getStatus().getStatus());
          body.endObject();
        }
        body.endArray();
        RestStatus status = failures.isEmpty() ? RestStatus.OK : failures.get(0).getStatus();
        channel.sendResponse(new RestResponse(status, body.endObject()));
      } catch (IOException e) {
        fail(e);
      }
    }

    private void fail(Exception cause) {
      try {
        channel.sendResponse(new RestResponse(channel, cause));
      } catch (IOException e) {
        throw new java.io.UncheckedIOException(e);
      }
    }
  }
}
