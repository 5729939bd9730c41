package velocity.elasticsearch;

import java.nio.file.Path;
import java.util.Set;
import org.elasticsearch.plugins.PluginBundle;
import org.elasticsearch.plugins.PluginsLoader;

/** What the versions of Elasticsearch call differently: this is 8. */
final class Versioned {

  private Versioned() {}

  static Set<PluginBundle> bundles(Path modules) {
    return PluginsLoader.loadModulesBundles(modules);
  }
}
