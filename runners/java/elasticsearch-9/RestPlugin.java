package velocity.elasticsearch;

import java.util.Collection;
import java.util.List;
import java.util.function.Predicate;
import java.util.function.Supplier;
import org.elasticsearch.cluster.node.DiscoveryNodes;
import org.elasticsearch.cluster.service.ClusterService;
import org.elasticsearch.common.settings.Setting;
import org.elasticsearch.features.NodeFeature;
import org.elasticsearch.plugins.ActionPlugin;
import org.elasticsearch.plugins.Plugin;
import org.elasticsearch.rest.RestHandler;

/** What of Elasticsearch's REST interface lies in modules that are not published as jars. */
public final class RestPlugin extends Plugin implements ActionPlugin {

  private volatile ClusterService cluster;

  @Override
  public Collection<?> createComponents(PluginServices services) {
    cluster = services.clusterService();
    return List.of();
  }

  @Override
  public Collection<RestHandler> getRestHandlers(
      RestHandlersServices services,
      Supplier<DiscoveryNodes> nodes,
      Predicate<NodeFeature> features) {
    return List.of(new Root(cluster), new DeleteByQuery());
  }

  /** Accepted, so that an index template with a lifecycle loads, but nothing acts on them here. */
  @Override
  public List<Setting<?>> getSettings() {
    return List.of(
        Setting.simpleString(
            "index.lifecycle.name", Setting.Property.Dynamic, Setting.Property.IndexScope),
        Setting.simpleString(
            "index.lifecycle.rollover_alias",
            Setting.Property.Dynamic,
            Setting.Property.IndexScope));
  }
}
