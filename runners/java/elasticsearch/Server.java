package velocity.elasticsearch;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import org.elasticsearch.Build;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/**
 * One Elasticsearch node from the published jars, without the distribution around them.
 *
 * <p>Arguments: the home folder, which holds {@code modules/} with the jars of each module and will
 * hold {@code config/}, {@code data/} and {@code logs/}; then any number of {@code setting=value}.
 * SIGTERM closes the node in order.
 */
public final class Server {

  private Server() {}

  public static void main(String[] args) {
    try {
      run(args);
    } catch (Throwable e) {
      // Threads of the node that did not start would go on for ever, and nobody see that it failed.
      e.printStackTrace();
      Runtime.getRuntime().halt(1);
    }
  }

  private static void run(String[] args) throws Exception {
    Path home = Path.of(args[0]).toAbsolutePath();
    Files.createDirectories(home.resolve("config"));
    Files.createDirectories(home.resolve("plugins"));
    describe(home, "transport-netty4", "org.elasticsearch.transport.netty4.Netty4Plugin");
    describe(home, "velocity-rest", "velocity.elasticsearch.RestPlugin");

    Settings settings = settings(home, args);
    LogConfigurator.configureESLogging();
    LogConfigurator.configureWithoutConfig(settings);
    LogConfigurator.setNodeName(settings.get("node.name"));
    // Its static initialiser touches its own subclasses: run it before two threads can deadlock.
    Class.forName("org.elasticsearch.ElasticsearchException");

    Environment environment =
        InternalSettingsPreparer.prepareEnvironment(
            settings, Map.of(), home.resolve("config"), () -> settings.get("node.name"));
    PluginsLoader plugins =
        PluginsLoader.createPluginsLoader(
            Versioned.bundles(environment.modulesDir()), Set.of(), Map.of(), false);
    Node node = new Node(environment, plugins);
    CountDownLatch closed = new CountDownLatch(1);
    Runtime.getRuntime()
        .addShutdownHook(
            new Thread(
                () -> {
                  try {
                    node.prepareForClose();
                    node.close();
                  } catch (IOException e) {
                    e.printStackTrace();
                  } finally {
                    closed.countDown();
                  }
                }));
    node.start();
    closed.await();
  }

  private static Settings settings(Path home, String[] args) {
    Settings.Builder builder =
        Settings.builder()
            .put("path.home", home)
            .put("path.data", home.resolve("data"))
            .put("path.logs", home.resolve("logs"))
            .put("cluster.name", "velocity")
            .put("node.name", "velocity")
            .put("discovery.type", "single-node")
            .put("network.host", "127.0.0.1")
            // A laptop's disk is often fuller than the 85 % at which shards stay unassigned.
            .put("cluster.routing.allocation.disk.threshold_enabled", false);
    for (int i = 1; i < args.length; i++) {
      String[] setting = args[i].split("=", 2);
      if (setting.length < 2) {
        throw new IllegalArgumentException("not a setting=value: " + args[i]);
      }
      builder.put(setting[0], setting[1]);
    }
    return builder.build();
  }

  /** A module is loaded only with the descriptor that the distribution would have. */
  private static void describe(Path home, String name, String plugin) throws IOException {
    String version = Build.current().version();
    Path module = Files.createDirectories(home.resolve("modules").resolve(name));
    Files.writeString(
        module.resolve("plugin-descriptor.properties"),
        String.join(
            "\n",
            "name=" + name,
            "description=" + name,
            "version=" + version,
            "elasticsearch.version=" + version,
            "java.version=17",
            "classname=" + plugin,
            ""));
  }
}
